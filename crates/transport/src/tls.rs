use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, Runtime};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
};
use selvedge_model::NodeId;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::mux::{Diverted, Mux};
use crate::{BindError, Counters};

/// What precedes the 32 bytes in the SubjectPublicKeyInfo of an Ed25519 key (RFC 8410).
const SPKI_PREFIX: [u8; 12] = *b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

/// What precedes the 32 bytes of the seed in a PKCS #8 private key (RFC 8410).
const PKCS8_PREFIX: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// Names the protocol in TLS. Its version is told by the hello, whose errors people can read.
const ALPN: &[u8] = b"selvedge";

/// A connection without traffic is closed after this time.
const IDLE: Duration = Duration::from_secs(15);

/// What strangers may have in flight; members get more once they are known.
const STRANGER_STREAMS: u32 = 2;
const STRANGER_WINDOW: u32 = 64 * 1024;
const STREAM_WINDOW: u32 = 256 * 1024;

/// The own identity, ready for TLS.
#[derive(Clone)]
pub(crate) struct Keys {
    node: NodeId,
    key: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    reset_key: [u8; 32],
}

impl Keys {
    pub(crate) fn new(secret: &Zeroizing<[u8; 32]>) -> Result<Self, BindError> {
        let node = NodeId(SigningKey::from_bytes(secret).verifying_key().to_bytes());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = provider.key_provider.load_private_key(private_key(secret))?;
        let public = CertificateDer::from([&SPKI_PREFIX[..], &node.0].concat());
        let reset_key = blake3::derive_key("selvedge transport stateless reset v1", &secret[..]);
        Ok(Self { node, key: Arc::new(CertifiedKey::new(vec![public], key)), provider, reset_key })
    }

    pub(crate) const fn node(&self) -> NodeId {
        self.node
    }

    /// The configuration of a dial that accepts `expected` and nobody else, or, if nobody is
    /// expected, everybody; the cell tells whom it found.
    pub(crate) fn dial(
        &self,
        expected: Option<NodeId>,
    ) -> Result<(quinn::ClientConfig, Arc<OnceLock<NodeId>>), Error> {
        let found = Arc::new(OnceLock::new());
        let verifier =
            ExpectServer { expected, found: found.clone(), provider: self.provider.clone() };
        let mut tls = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
                self.key.clone(),
            )));
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // Every connection proves both identities anew, and no name of the partner is sent.
        tls.resumption = Resumption::disabled();
        tls.enable_sni = false;
        let tls =
            QuicClientConfig::try_from(tls).map_err(|error| Error::General(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(transport_config());
        Ok((config, found))
    }

    fn server(&self) -> Result<quinn::ServerConfig, Error> {
        let verifier = AnyClient { provider: self.provider.clone() };
        let mut tls = rustls::ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.key.clone())));
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        let tls =
            QuicServerConfig::try_from(tls).map_err(|error| Error::General(error.to_string()))?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(transport_config()).max_incoming(256);
        Ok(config)
    }
}

/// Opens the endpoint. Its stateless resets (RFC 9000, section 10.3) are keyed by the identity,
/// so that after a restart partners learn at once that their old connections are gone. What
/// arrives on its socket and is not QUIC goes to `divert`.
pub(crate) fn endpoint(
    keys: &Keys,
    (listen, mark): (SocketAddr, Option<u32>),
    divert: mpsc::Sender<Diverted>,
    counters: Arc<Counters>,
) -> Result<(quinn::Endpoint, Arc<Mux>), BindError> {
    let failed = |source| BindError::Socket { listen, source };
    let runtime = Arc::new(quinn::TokioRuntime);
    let socket = socket(listen, mark).and_then(|socket| runtime.wrap_udp_socket(socket));
    let mux = socket.and_then(|socket| Mux::new(socket, divert, counters)).map_err(failed)?;
    let mux = Arc::new(mux);
    let mut config = quinn::EndpointConfig::new(Arc::new(ResetKey(keys.reset_key)));
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| BindError::Random(error.to_string()))?;
    config.cid_generator(move || Box::new(RandomIds { seed, issued: 0 }));
    // Partners may vary the bit by which packets of QUIC are known only if we offer that (RFC
    // 9287, section 3).
    config.grease_quic_bit(false);
    let socket: Arc<dyn AsyncUdpSocket> = mux.clone();
    let server = Some(keys.server()?);
    let endpoint = quinn::Endpoint::new_with_abstract_socket(config, server, socket, runtime);
    Ok((endpoint.map_err(failed)?, mux))
}

/// The identity that the other side of a connection proved.
pub(crate) fn peer(connection: &quinn::Connection) -> Option<NodeId> {
    let identity = connection.peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    node_of(chain.first()?)
}

fn socket(listen: SocketAddr, mark: Option<u32>) -> std::io::Result<std::net::UdpSocket> {
    match bind(listen, mark) {
        // A host whose IPv6 is switched off still serves IPv4.
        Err(_) if listen.is_ipv6() && listen.ip().is_unspecified() && !has_ipv6() => {
            bind((Ipv4Addr::UNSPECIFIED, listen.port()).into(), mark)
        }
        bound => bound,
    }
}

fn has_ipv6() -> bool {
    std::net::UdpSocket::bind("[::1]:0").is_ok()
}

fn bind(listen: SocketAddr, mark: Option<u32>) -> std::io::Result<std::net::UdpSocket> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    if listen.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

fn transport_config() -> Arc<quinn::TransportConfig> {
    let mut config = quinn::TransportConfig::default();
    config
        .max_concurrent_bidi_streams(0_u32.into())
        .max_concurrent_uni_streams(STRANGER_STREAMS.into())
        .receive_window(STRANGER_WINDOW.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IDLE.try_into().expect("a few seconds fit into the field")));
    Arc::new(config)
}

fn private_key(secret: &Zeroizing<[u8; 32]>) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8([&PKCS8_PREFIX[..], &secret[..]].concat().into())
}

fn node_of(public: &CertificateDer<'_>) -> Option<NodeId> {
    let key = public.as_ref().strip_prefix(&SPKI_PREFIX)?;
    key.try_into().ok().map(NodeId)
}

fn node_or_error(public: &CertificateDer<'_>) -> Result<NodeId, Error> {
    node_of(public).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))
}

fn verify(
    provider: &CryptoProvider,
    message: &[u8],
    public: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = SubjectPublicKeyInfoDer::from(public.as_ref());
    let algorithms = &provider.signature_verification_algorithms;
    verify_tls13_signature_with_raw_key(message, &spki, signed, algorithms)
}

fn no_tls12() -> Error {
    Error::PeerIncompatible(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig)
}

/// Accepts the server whose identity was expected, or any if none was.
#[derive(Debug)]
struct ExpectServer {
    expected: Option<NodeId>,
    found: Arc<OnceLock<NodeId>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ExpectServer {
    fn verify_server_cert(
        &self,
        public: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = node_or_error(public)?;
        self.found.get_or_init(|| found);
        match self.expected.is_none_or(|expected| found == expected) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        public: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(&self.provider, message, public, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Lets every client prove its identity; what it may do is decided once it is proven, so that a
/// refusal can say why.
#[derive(Debug)]
struct AnyClient {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        public: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        node_or_error(public).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        public: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify(&self.provider, message, public, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Keyed BLAKE3 in the place of HMAC: quinn only needs a keyed hash.
struct ResetKey([u8; 32]);

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let signature: [u8; 32] = signature.try_into().map_err(|_| CryptoError)?;
        // blake3::Hash compares in constant time.
        match blake3::keyed_hash(&self.0, data) == blake3::Hash::from_bytes(signature) {
            true => Ok(()),
            false => Err(CryptoError),
        }
    }
}

/// Random connection ids. The default ones are tied to the process, and packets to those of a
/// former process would be ignored instead of reset.
struct RandomIds {
    seed: [u8; 32],
    issued: u64,
}

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.issued += 1;
        let hash = blake3::keyed_hash(&self.seed, &self.issued.to_be_bytes());
        ConnectionId::new(&hash.as_bytes()[..self.cid_len()])
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_encodings() {
        let keys = Keys::new(&Zeroizing::new([7; 32])).expect("a seed of any bytes is a key");
        let public = keys.key.end_entity_cert().expect("one public key");
        assert_eq!(node_of(public), Some(keys.node()));
        let derived = keys.key.key.public_key().expect("ring derives the public key");
        assert_eq!(derived.as_ref(), public.as_ref());
    }

    #[test]
    fn other_keys_are_no_identity() {
        for bad in [&b""[..], &SPKI_PREFIX, &[0x30; 44]] {
            assert_eq!(node_of(&CertificateDer::from(bad)), None);
        }
    }
}
