use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use super::*;
use crate::test_support::namespace;

#[test]
fn names_are_file_names() {
    for bad in ["", ".", "..", "a/b", "../x", "a b", "\u{fc}", &"x".repeat(201)] {
        assert!(matches!(Namespace::create(bad), Err(Error::BadName(_))), "{bad:?}");
    }
}

#[test]
fn a_namespace_comes_and_goes() {
    let Some(ns) = namespace("a_namespace_comes_and_goes") else { return };
    let name = ns.name().to_owned();
    assert!(Namespace::list(&name).expect("readable").contains(&name));
    let seen = Command::new("ip").args(["netns", "list"]).output();
    if let Ok(seen) = seen {
        let text = String::from_utf8_lossy(&seen.stdout);
        assert!(text.lines().any(|line| line.starts_with(&name)), "{text}");
    }
    assert!(matches!(Namespace::create(&name), Err(Error::Create { .. })));
    let twin = Namespace::open(&name).expect("it exists");
    drop(ns);
    assert!(!Namespace::list(&name).expect("readable").contains(&name));
    assert!(matches!(Namespace::open(&name), Err(Error::Open { .. })));
    Namespace::remove(&name).expect("removing what is gone is no error");
    // What is open lives on.
    assert!(twin.run(|| ()).is_ok());
}

#[test]
fn work_and_children_run_inside() {
    let Some(ns) = namespace("work_and_children_run_inside") else { return };
    let inode = fs::metadata("/proc/thread-self/ns/net").expect("proc").ino();
    let inside = ns
        .run(|| fs::metadata("/proc/thread-self/ns/net").expect("proc").ino())
        .expect("it can be entered");
    assert_ne!(inode, inside);
    let here = fs::metadata("/proc/thread-self/ns/net").expect("proc").ino();
    assert_eq!(inode, here, "the calling thread stays where it was");
    let child = ns.command("readlink").arg("/proc/self/ns/net").output().expect("readlink runs");
    assert_eq!(String::from_utf8_lossy(&child.stdout).trim(), format!("net:[{inside}]"));
}

#[test]
fn children_die_with_the_thread_that_started_them() {
    let thread = std::thread::spawn(|| {
        let mut command = Command::new("sleep");
        die_with_parent(command.arg("60").stdin(Stdio::null()));
        command.spawn().expect("sleep runs")
    });
    let mut child = thread.join().expect("no panic");
    let status = child.wait().expect("it can be waited for");
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(status.signal(), Some(nix::libc::SIGKILL));
}
