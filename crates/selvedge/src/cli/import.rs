use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{line, progress};
use crate::import::{self, Imported};

#[derive(Args, Debug)]
pub(super) struct ImportArgs {
    #[command(subcommand)]
    command: ImportCommand,
}

#[derive(Debug, Subcommand)]
enum ImportCommand {
    /// Turn the YAML configuration of `smegmesh` into ours
    ///
    /// The configuration goes to standard output, or into a file; what has no counterpart is told
    /// on standard error.
    #[command(after_help = "\
Examples:
  selvedge import smegmesh /smegmesh/configuration.yaml
  selvedge import smegmesh configuration.yaml --output /etc/selvedge/agent.toml")]
    Smegmesh {
        /// The predecessor's configuration; - reads standard input
        file: PathBuf,
        /// Write ours into this file, which must not exist yet
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Print one JSON object: the configuration and the remarks
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: ImportArgs) -> anyhow::Result<()> {
    let ImportCommand::Smegmesh { file, output, json } = args.command;
    let text = read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let imported =
        import::smegmesh(&text).with_context(|| format!("cannot import {}", file.display()))?;
    let Imported { file, notes } = imported;
    let toml = file.to_toml().context("cannot write the configuration as TOML")?;
    if let Some(output) = &output {
        write(output, &toml).with_context(|| format!("cannot write {}", output.display()))?;
    }
    if json {
        return line(&json!({ "configuration": toml, "notes": notes }).to_string());
    }
    for note in &notes {
        progress(&format!("{}: {}", note.key, note.text));
    }
    match output {
        Some(output) => line(&format!("wrote {}", output.display())),
        None => line(toml.trim_end()),
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    let limit = import::MAX_LENGTH;
    let mut text = String::new();
    match file.to_str() {
        Some("-") => std::io::stdin().take(limit + 1).read_to_string(&mut text)?,
        Some(_) | None => fs::File::open(file)?.take(limit + 1).read_to_string(&mut text)?,
    };
    if text.len() as u64 > limit {
        bail!("it has more than {limit} bytes");
    }
    Ok(text)
}

/// A file that is there may be somebody's work.
fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = fs::File::create_new(file)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(file: PathBuf, output: &Path) -> anyhow::Result<()> {
        let output = Some(output.to_owned());
        run(ImportArgs { command: ImportCommand::Smegmesh { file, output, json: false } })
    }

    #[test]
    fn nothing_that_is_there_is_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let (yaml, toml) = (folder.path().join("a.yaml"), folder.path().join("a.toml"));
        fs::write(&yaml, "gRPCPort: 4000\n").expect("writes");
        import(yaml.clone(), &toml).expect("imported");
        assert_eq!(fs::read_to_string(&toml).expect("written"), "[mesh]\nlisten = \"[::]:4000\"\n");
        let error = format!("{:#}", import(yaml, &toml).expect_err("it is there"));
        assert!(error.starts_with("cannot write ") && error.contains("exists"), "{error}");
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let (yaml, toml) = (folder.path().join("a.yaml"), folder.path().join("a.toml"));
        let error = format!("{:#}", import(yaml.clone(), &toml).expect_err("not there"));
        assert!(error.starts_with("cannot read "), "{error}");
        let long = " ".repeat(usize::try_from(import::MAX_LENGTH).expect("fits") + 1);
        fs::write(&yaml, long).expect("writes");
        let error = format!("{:#}", import(yaml, &toml).expect_err("too long"));
        assert!(error.ends_with("it has more than 1048576 bytes"), "{error}");
        assert!(!toml.exists());
    }
}
