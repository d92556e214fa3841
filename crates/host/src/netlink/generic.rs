//! Generic netlink: the kernel's parts that have a name instead of a protocol of their own, such
//! as WireGuard.

use std::sync::Arc;

use nix::libc;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkSerializable,
};
use rtnetlink::proto::ConnectionHandle;
use rtnetlink::sys::{SocketAddr, protocols::NETLINK_GENERIC};
use tokio::sync::Mutex;

use super::attribute::{Malformed, attributes, exactly, put};
use super::{Error, Failure, collect, dump};

/// Who knows the numbers of the others (`GENL_ID_CTRL`), and what it is asked and answers.
const CONTROL: Family = Family { id: 16, version: 1 };
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// A part of the kernel, by the number that it was given when it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Family {
    id: u16,
    version: u8,
}

/// A message: a command and attributes, which are not looked into here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    family: Family,
    command: u8,
    attributes: Vec<u8>,
}

/// The header: a command, a version, and two bytes that are zero (`struct genlmsghdr`).
const HEADER: usize = 4;

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.family.id
    }

    fn buffer_len(&self) -> usize {
        HEADER + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..HEADER].copy_from_slice(&[self.command, self.family.version, 0, 0]);
        buffer[HEADER..].copy_from_slice(&self.attributes);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Malformed;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Malformed> {
        let (head, attributes) =
            payload.split_first_chunk::<HEADER>().ok_or(Malformed("it has no header"))?;
        let family = Family { id: header.message_type, version: head[1] };
        Ok(Self { family, command: head[0], attributes: attributes.to_vec() })
    }
}

/// A connection to one part of the kernel. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Generic {
    handle: ConnectionHandle<Message>,
    family: Family,
    /// As with the routing netlink: one dump at a time.
    dumps: Arc<Mutex<()>>,
}

impl Generic {
    /// Opens a socket in the network namespace of the calling thread to the part called `name`,
    /// and spawns the task that reads it. `None`: the kernel has no such part, or not yet.
    ///
    /// # Errors
    /// If the socket cannot be opened, or the kernel not be asked.
    pub(crate) async fn open(name: &str, version: u8) -> Result<Option<Self>, Error> {
        let opened = rtnetlink::proto::new_connection::<Message>(NETLINK_GENERIC);
        let (mut connection, handle, _) = opened.map_err(Error::Open)?;
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        tokio::spawn(connection);
        let mut generic = Self { handle, family: CONTROL, dumps: Arc::default() };
        match generic.resolve(name).await {
            Ok(id) => {
                generic.family = Family { id, version };
                Ok(Some(generic))
            }
            Err(Failure::Errno(libc::ENOENT)) => Ok(None),
            Err(failure) => Err(failure.into_error("look up the netlink family", name)),
        }
    }

    async fn resolve(&self, name: &str) -> Result<u16, Failure> {
        let mut request = Vec::new();
        put(&mut request, FAMILY_NAME, format!("{name}\0").as_bytes());
        let answer = collect(self.request(GET_FAMILY, request, NLM_F_ACK)?).await?;
        let found = answer.messages.iter().flat_map(|message| attributes(&message.attributes));
        let mut ids = found.filter_map(Result::ok).filter(|(kind, _)| *kind == FAMILY_ID);
        let id = ids.find_map(|(_, value)| exactly(value).ok().map(u16::from_ne_bytes));
        id.ok_or(Failure::Lost("the kernel named no number"))
    }

    /// Has a command done, and waits for its acknowledgement.
    ///
    /// # Errors
    /// If the kernel refuses `operation` on `object`.
    pub(crate) async fn command(
        &self,
        (operation, object): (&'static str, &str),
        command: u8,
        attributes: Vec<u8>,
    ) -> Result<(), Error> {
        let done = match self.request(command, attributes, NLM_F_ACK) {
            Ok(stream) => collect(stream).await.map(drop),
            Err(failure) => Err(failure),
        };
        done.map_err(|failure| failure.into_error(operation, object))
    }

    /// The attributes of all messages of an answer in many, which is asked for again if what it
    /// tells of has changed meanwhile.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) async fn dump(
        &self,
        operation: &'static str,
        command: u8,
        attributes: &[u8],
    ) -> Result<Vec<Vec<u8>>, Error> {
        let _alone = self.dumps.lock().await;
        let ask = || self.request(command, attributes.to_vec(), NLM_F_DUMP);
        let messages = dump(operation, ask).await?;
        Ok(messages.into_iter().map(|message| message.attributes).collect())
    }

    fn request(
        &self,
        command: u8,
        attributes: Vec<u8>,
        flags: u16,
    ) -> Result<impl futures_util::Stream<Item = NetlinkMessage<Message>> + use<>, Failure> {
        let message = Message { family: self.family, command, attributes };
        let mut request = NetlinkMessage::new(
            NetlinkHeader::default(),
            super::NetlinkPayload::InnerMessage(message),
        );
        request.header.flags = NLM_F_REQUEST | flags;
        let kernel = SocketAddr::new(0, 0);
        self.handle.request(request, kernel).map_err(|_| Failure::Lost("the socket is closed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_a_header_and_attributes() {
        let family = Family { id: 29, version: 1 };
        let message = Message { family, command: 7, attributes: vec![1, 2, 3, 4] };
        let mut bytes = vec![0xff; message.buffer_len()];
        message.serialize(&mut bytes);
        assert_eq!(bytes, [7, 1, 0, 0, 1, 2, 3, 4]);
        let mut header = NetlinkHeader::default();
        header.message_type = 29;
        assert_eq!(Message::deserialize(&header, &bytes), Ok(message));
        assert!(Message::deserialize(&header, &bytes[..3]).is_err());
    }

    /// The one family that every kernel has is the one that knows the others.
    #[tokio::test]
    async fn the_kernel_knows_its_parts_by_name() {
        let there = Generic::open("nlctrl", 2).await.expect("asked").expect("every kernel has it");
        assert_eq!(there.family, Family { id: 16, version: 2 });
        let all = there.dump("list the families", GET_FAMILY, &[]).await.expect("listed");
        let named = |message: &Vec<u8>| {
            attributes(message).any(|it| it == Ok((FAMILY_NAME, b"nlctrl\0".as_slice())))
        };
        assert!(all.iter().any(named), "{} families", all.len());
        assert!(Generic::open("nosuch", 1).await.expect("asked").is_none());
        let refused = there.command(("try", "nothing"), 77, Vec::new()).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    }
}
