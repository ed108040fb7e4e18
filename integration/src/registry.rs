//! A registry on loopback: Debian's docker-registry, filled over its own API.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    image::{Blob, Image},
    programs, wait,
};

/// A registry that runs, and ends with this value.
pub struct Registry {
    child: Child,
    address: String,
}

impl Registry {
    /// Starts a registry that keeps its data in `directory`.
    ///
    /// # Errors
    ///
    /// docker-registry is not installed, or does not come up.
    pub fn start(directory: &Path) -> Result<Self> {
        let program = programs::debian("docker-registry")?;
        // The port is free until the registry takes it; whoever is faster makes the start fail.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        fs::create_dir_all(directory)?;
        let config = directory.join("config.yml");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
                 http: {{addr: {address}}}\n",
                directory.join("data").display()
            ),
        )?;
        let log = fs::File::create(directory.join("log"))?;
        let child = Command::new(program)
            .arg("serve")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry")?;
        let registry = Self { child, address };
        wait::until_true("the registry", || registry.request("GET", "/v2/", "", &[]).is_ok())?;
        Ok(registry)
    }

    /// Where it listens: host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Puts `image` into `repository` under `tag`, and gives its full reference.
    ///
    /// # Errors
    ///
    /// The registry refuses a part of it.
    pub fn push(&self, image: &Image, repository: &str, tag: &str) -> Result<String> {
        for blob in &image.blobs {
            if Image::is_manifest(blob) {
                let name = if blob.digest == image.top().digest { tag } else { &blob.digest };
                let path = format!("/v2/{repository}/manifests/{name}");
                self.request("PUT", &path, blob.media_type, &blob.bytes)?;
            } else {
                self.push_blob(repository, blob)?;
            }
        }
        Ok(format!("{}/{repository}:{tag}", self.address))
    }

    fn push_blob(&self, repository: &str, blob: &Blob) -> Result<()> {
        let head = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &[])?;
        let location = head
            .lines()
            .find_map(|line| line.strip_prefix("Location: "))
            .context("the registry gives no place for an upload")?;
        let path = location.split_once(&self.address).map_or(location, |(_, path)| path);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("{path}{separator}digest={}", blob.digest);
        self.request("PUT", &path, "application/octet-stream", &blob.bytes)?;
        Ok(())
    }

    /// Makes one request and gives the head of the answer.
    fn request(&self, method: &str, path: &str, media_type: &str, body: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Type: {media_type}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        )?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, rest) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).unwrap_or_default();
        ensure!(status.starts_with('2'), "{method} {path}: {head} {rest}");
        Ok(head.replace('\r', ""))
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
