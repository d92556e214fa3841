//! etcd as processes of the laboratory, and `etcdctl` to ask and to watch it.

mod watch;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use data_encoding::BASE64;
use serde::Deserialize;
use serde_json::Value;

use crate::clock::wait_until;
use crate::{Error, Host, Process, Recipe, command};

pub use watch::{Seen, Watch};

/// A cluster of etcd. Its data lies in the laboratory's folder.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    host: Host,
    client_url: String,
    process: Process,
}

impl Etcd {
    /// Whether etcd and etcdctl are installed.
    #[must_use]
    pub fn is_installed() -> bool {
        let runs = |program| Command::new(program).arg("--version").output().is_ok();
        runs("etcd") && runs("etcdctl")
    }

    /// Starts a cluster with a member on each of `hosts`, named like it and listening on the
    /// address given, and waits until it has a leader.
    ///
    /// # Errors
    /// If a member does not start, or they do not agree on a leader within 15 s.
    pub fn start(hosts: &[(Host, IpAddr)]) -> Result<Self, Error> {
        let cluster: Vec<String> = hosts
            .iter()
            .map(|(host, address)| format!("{}={}", host.name(), url(*address, PEERS)))
            .collect();
        let members: Result<_, Error> = hosts
            .iter()
            .map(|(host, address)| {
                let process = recipe(host, *address, &cluster.join(",")).start()?;
                Ok(Member { host: host.clone(), client_url: url(*address, CLIENTS), process })
            })
            .collect();
        let etcd = Self { members: members? };
        etcd.wait_healthy(Duration::from_secs(15))?;
        Ok(etcd)
    }

    /// The members' client URLs.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client_url.clone()).collect()
    }

    /// The names of the hosts with a member.
    #[must_use]
    pub fn members(&self) -> Vec<String> {
        self.members.iter().map(|member| member.host.name().to_owned()).collect()
    }

    /// The host whose member leads; `None` if no member that answers does.
    ///
    /// # Errors
    /// If an answer cannot be understood. That a member does not answer is no error.
    pub fn leader(&self) -> Result<Option<String>, Error> {
        for member in &self.members {
            if let Ok(status) = member.status()
                && status.leader == status.header.member_id
                && status.leader != 0
            {
                return Ok(Some(member.host.name().to_owned()));
            }
        }
        Ok(None)
    }

    /// Makes the member on `host` the leader.
    ///
    /// # Errors
    /// If there is no such member, or it does not take over.
    pub fn move_leader(&self, host: &str) -> Result<(), Error> {
        let target = self.member(host)?.status()?.header.member_id;
        let Some(leader) = self.leader()? else {
            return Err(Error::Unknown { what: "leader of etcd", name: "any".to_owned() });
        };
        if leader != host {
            self.member(&leader)?.ctl(&["move-leader", &format!("{target:x}")])?;
        }
        wait_until(&format!("{host}'s leadership of etcd"), Duration::from_secs(5), || {
            Ok(self.leader()?.as_deref() == Some(host))
        })
    }

    /// Waits until every member answers a linearizable read, and one leads.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn wait_healthy(&self, limit: Duration) -> Result<(), Error> {
        wait_until("the health of all members of etcd", limit, || {
            let healthy = self.members.iter().all(|it| it.ctl(&["endpoint", "health"]).is_ok());
            Ok(healthy && self.leader()?.is_some())
        })
    }

    /// All keys that begin with `prefix`, with their values, as the first member that answers
    /// says.
    ///
    /// # Errors
    /// If none answers, or the answer cannot be understood.
    pub fn get(&self, prefix: &str) -> Result<BTreeMap<String, String>, Error> {
        let mut last = Error::Unknown { what: "member of etcd", name: "any".to_owned() };
        for member in &self.members {
            match member.ctl(&["get", "--prefix", prefix, "-w", "json"]) {
                Ok(text) => return key_values(&text),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Starts to watch what happens to the keys that begin with `prefix`, at every member, from
    /// `observer`.
    ///
    /// # Errors
    /// If `etcdctl` cannot be started.
    pub fn watch(&self, observer: &Host, prefix: &str) -> Result<Watch, Error> {
        Watch::start(observer, &self.endpoints(), prefix)
    }

    /// As [`Etcd::watch`], at the first member alone: a lighter load, for where that member is
    /// sure to last.
    ///
    /// # Errors
    /// As [`Etcd::watch`].
    pub fn watch_one(&self, observer: &Host, prefix: &str) -> Result<Watch, Error> {
        let first: Vec<String> = self.endpoints().into_iter().take(1).collect();
        Watch::start(observer, &first, prefix)
    }

    /// Kills the member on `host`; its data stays.
    ///
    /// # Errors
    /// If there is no such member.
    pub fn kill_member(&mut self, host: &str) -> Result<(), Error> {
        let unknown = || Error::Unknown { what: "member of etcd", name: host.to_owned() };
        let mut members = self.members.iter_mut();
        let member = members.find(|member| member.host.name() == host).ok_or_else(unknown)?;
        member.process.kill();
        Ok(())
    }

    /// Starts the member on `host` again, if it has one: it finds its data.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn restart_members_on(&mut self, host: &str) -> Result<(), Error> {
        let on_it = |member: &&mut Member| member.host.name() == host;
        self.members.iter_mut().filter(on_it).try_for_each(|member| member.process.restart())
    }

    fn member(&self, host: &str) -> Result<&Member, Error> {
        let unknown = || Error::Unknown { what: "member of etcd", name: host.to_owned() };
        self.members.iter().find(|member| member.host.name() == host).ok_or_else(unknown)
    }
}

impl Member {
    /// Runs `etcdctl` on the member's own host, against it alone.
    fn ctl(&self, arguments: &[&str]) -> Result<String, Error> {
        let mut etcdctl = self.host.command("etcdctl");
        etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", &self.client_url]);
        command::run(etcdctl.args(["--command-timeout", "2s"]).args(arguments))
    }

    fn status(&self) -> Result<Status, Error> {
        let text = self.ctl(&["endpoint", "status", "-w", "json"])?;
        let all: Vec<Endpoint> = parse(&text)?;
        let none = || unclear("no endpoint in its status");
        all.into_iter().next().map(|endpoint| endpoint.status).ok_or_else(none)
    }
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(rename = "Status")]
    status: Status,
}

#[derive(Deserialize)]
struct Status {
    header: Header,
    #[serde(default)]
    leader: u64,
}

#[derive(Deserialize)]
struct Header {
    member_id: u64,
}

const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;

fn recipe(host: &Host, address: IpAddr, cluster: &str) -> Recipe {
    let (clients, peers) = (url(address, CLIENTS), url(address, PEERS));
    Recipe::new("etcd", host, "etcd")
        .args(["--name", host.name(), "--data-dir", &format!("etcd-{}", host.name())])
        .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", cluster, "--initial-cluster-state", "new"])
        .args(["--logger", "zap", "--log-outputs", "stderr"])
}

fn url(address: IpAddr, port: u16) -> String {
    format!("http://{}", SocketAddr::new(address, port))
}

fn key_values(text: &str) -> Result<BTreeMap<String, String>, Error> {
    let answer: Value = parse(text)?;
    let all = answer["kvs"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().map(|kv| Ok((decoded(&kv["key"])?, decoded(&kv["value"])?))).collect()
}

/// The text behind a field in base64; an absent field is an empty text.
fn decoded(field: &Value) -> Result<String, Error> {
    let bytes = BASE64.decode(field.as_str().unwrap_or_default().as_bytes());
    let bytes = bytes.map_err(|error| unclear(&error.to_string()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn parse<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| unclear(&error.to_string()))
}

fn unclear(reason: &str) -> Error {
    Error::Answer { of: "etcdctl".to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_etcdctl_are_understood() {
        let text = r#"{"header":{"revision":7},"kvs":[
            {"key":"L2E=","create_revision":2,"mod_revision":3,"version":1,"value":"MQ=="},
            {"key":"L2I=","create_revision":2,"mod_revision":3,"version":1}],"count":2}"#;
        let all = key_values(text).expect("understood");
        assert_eq!(all, [("/a".into(), "1".into()), ("/b".into(), String::new())].into());
        assert_eq!(key_values(r#"{"header":{}}"#).expect("understood"), BTreeMap::new());
        assert!(matches!(key_values("Error: x"), Err(Error::Answer { .. })));
    }
}
