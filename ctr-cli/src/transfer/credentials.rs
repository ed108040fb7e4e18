//! Credentials for one registry.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::Context as _;
use proto::containerd::types::transfer::{AuthRequest, AuthResponse, AuthType};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::Stream;

/// A user's secret, and the only registry that gets it.
#[derive(Clone)]
pub(crate) struct Credentials {
    host: String,
    username: String,
    secret: String,
}

impl Credentials {
    /// The credentials that `--user` or `--refresh` gives for the registry of `reference`.
    pub(crate) fn new(
        user: Option<&str>,
        refresh: Option<&str>,
        reference: &str,
    ) -> anyhow::Result<Option<Self>> {
        let host = reference.split('/').next().unwrap_or_default().to_owned();
        if let Some(token) = refresh {
            let secret = token.to_owned();
            return Ok(Some(Self { host, username: String::new(), secret }));
        }
        let Some(user) = user else { return Ok(None) };
        let (username, secret) = match user.split_once(':') {
            Some((username, secret)) => (username.to_owned(), secret.to_owned()),
            None => (user.to_owned(), ask_password()?),
        };
        Ok(Some(Self { host, username, secret }))
    }

    /// Answers the daemon's questions until it has no more.
    pub(crate) async fn serve(&self, stream: &mut Stream) -> anyhow::Result<()> {
        while let Some(any) = stream.next().await? {
            if let Some(request) = proto::any::unpack::<AuthRequest>(&any)?
                && !stream.send(proto::any::pack(&self.answer(&request.host))).await
            {
                break;
            }
        }
        Ok(())
    }

    fn answer(&self, host: &str) -> AuthResponse {
        // A registry may send its client elsewhere; the secret does not follow.
        let same =
            host == self.host || (self.host == "docker.io" && host == "registry-1.docker.io");
        if !same {
            return AuthResponse::default();
        }
        let kind = if self.username.is_empty() { AuthType::Refresh } else { AuthType::Credentials };
        AuthResponse {
            auth_type: kind.into(),
            username: self.username.clone(),
            secret: self.secret.clone(),
            ..Default::default()
        }
    }
}

/// Reads a password from standard input, without echo if that is a terminal.
fn ask_password() -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    let mut line = String::new();
    if stdin.is_terminal() {
        write!(std::io::stderr(), "Password: ")?;
        let before = tcgetattr(&stdin).context("read the terminal's mode")?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Now, &quiet).context("set the terminal's mode")?;
        let result = stdin.lock().read_line(&mut line);
        tcsetattr(&stdin, OptionalActions::Now, &before).context("set the terminal's mode")?;
        writeln!(std::io::stderr())?;
        result.context("read the password")?;
    } else {
        stdin.lock().read_line(&mut line).context("read the password")?;
    }
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_registry_gets_them() {
        let cases = [
            ("same host", "r.example:5000/a:b", "r.example:5000", "p:q"),
            ("other host", "r.example:5000/a:b", "evil.example", ""),
            ("other port", "r.example:5000/a:b", "r.example", ""),
            ("docker hub", "docker.io/library/a:b", "registry-1.docker.io", "p:q"),
        ];
        for (case, reference, host, want) in cases {
            let own = Credentials::new(Some("u:p:q"), None, reference).expect("parses");
            assert_eq!(own.expect("are there").answer(host).secret, want, "{case}");
        }
    }
}
