//! Users and groups, as the image's own files name them.
//!
//! The files are the image's, so they are hostile: what they say decides only which ids the
//! container's process has. A number is never looked up as a name, in whatever spelling, and one
//! that is out of range is an error, or `4294967296` could become root (CVE-2024-40635,
//! CVE-2026-46680).
//!
//! Source: containerd, `pkg/oci` (`WithUser`, `WithAdditionalGIDs`); OCI image-spec, "Config".

use std::str::FromStr;

use super::User;

/// The greatest id that runtimes take.
const ID_MAX: u32 = i32::MAX as u32;

/// The contents of `/etc/passwd` and `/etc/group`, empty where the image has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AccountFiles {
    pub(crate) passwd: String,
    pub(crate) group: String,
}

/// A user or group as people write it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Account {
    Id(u32),
    Name(String),
}

/// A user, and the group if one is named: `user`, `uid`, `user:group`, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UserSpec {
    user: Account,
    group: Option<Account>,
}

/// Why a user could not be found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UserError {
    /// More than one colon.
    #[error("invalid user {0:?}")]
    Syntax(String),
    /// A number that no process can have.
    #[error("invalid user {0:?}: id out of range")]
    OutOfRange(String),
    /// The name is not in `/etc/passwd`.
    #[error("no user {0:?} in the image's /etc/passwd")]
    NoUser(String),
    /// The name is not in `/etc/group`.
    #[error("no group {0:?} in the image's /etc/group")]
    NoGroup(String),
}

impl FromStr for UserSpec {
    type Err = UserError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> = text.split(':').collect();
        let account = |part: &str| parse_account(part, text);
        match parts.as_slice() {
            [user] => Ok(Self { user: account(user)?, group: None }),
            [user, group] => Ok(Self { user: account(user)?, group: Some(account(group)?) }),
            _ => Err(UserError::Syntax(text.to_owned())),
        }
    }
}

fn parse_account(part: &str, whole: &str) -> Result<Account, UserError> {
    if part.is_empty() {
        return Ok(Account::Id(0));
    }
    let digits = part.strip_prefix(['+', '-']).unwrap_or(part);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Account::Name(part.to_owned()));
    }
    let in_range = part.parse::<u32>().ok().filter(|&id| id <= ID_MAX);
    in_range.map(Account::Id).ok_or_else(|| UserError::OutOfRange(whole.to_owned()))
}

impl UserSpec {
    /// The user `root`, which images without a user have.
    pub(crate) fn root() -> Self {
        Self { user: Account::Id(0), group: Some(Account::Id(0)) }
    }

    /// Looks up the ids, and the supplementary groups that list the user; its group is first.
    pub(crate) fn resolve(&self, files: &AccountFiles) -> Result<User, UserError> {
        let entry = files.user(&self.user);
        let uid = match (&self.user, &entry) {
            (Account::Id(uid), _) => *uid,
            (Account::Name(_), Some(entry)) => entry.uid,
            (Account::Name(name), None) => return Err(UserError::NoUser(name.clone())),
        };
        let gid = match &self.group {
            Some(Account::Id(gid)) => *gid,
            Some(Account::Name(name)) => {
                files.gid(name).ok_or_else(|| UserError::NoGroup(name.clone()))?
            }
            None => entry.as_ref().map_or(0, |entry| entry.gid),
        };
        let mut additional_gids = vec![gid];
        if let Some(entry) = entry {
            let more = files.groups_of(entry.name);
            additional_gids.extend(more.filter(|more| *more != gid));
        }
        Ok(User { uid, gid, umask: None, additional_gids })
    }
}

/// A line of `/etc/passwd`.
struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl AccountFiles {
    fn user(&self, account: &Account) -> Option<PasswdEntry<'_>> {
        self.passwd.lines().filter_map(passwd_entry).find(|entry| match account {
            Account::Id(uid) => entry.uid == *uid,
            Account::Name(name) => entry.name == name,
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (name, gid) = (fields.next()?, fields.nth(1)?);
            Some((name, parse_id(gid)?, fields.next().unwrap_or("")))
        })
    }

    fn gid(&self, name: &str) -> Option<u32> {
        self.groups().find(|(own, ..)| *own == name).map(|(_, gid, _)| gid)
    }

    /// The groups that list `user`, besides the one of its own name.
    fn groups_of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = u32> + 'a {
        let lists = move |members: &str| members.split(',').any(|member| member == user);
        let of = self.groups().filter(move |(name, _, members)| *name != user && lists(members));
        of.map(|(_, gid, _)| gid)
    }
}

fn passwd_entry(line: &str) -> Option<PasswdEntry<'_>> {
    let mut fields = line.trim().split(':');
    let (name, uid, gid) = (fields.next()?, fields.nth(1)?, fields.next()?);
    Some(PasswdEntry { name, uid: parse_id(uid)?, gid: parse_id(gid)? })
}

fn parse_id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&id| id <= ID_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> AccountFiles {
        AccountFiles {
            passwd: "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n\
                     4294967296:x:0:0::/:/bin/sh\nbad:x:99999999999:0::/:\nshort\n"
                .to_owned(),
            group: "root:x:0:\nwheel:x:10:root,app\nextra:x:2000:app\napp:x:1001:app\n".to_owned(),
        }
    }

    #[test]
    fn resolve() {
        use UserError as E;
        let user = |uid, gid, additional: &[u32]| {
            Ok(User { uid, gid, umask: None, additional_gids: additional.to_vec() })
        };
        let range = |text: &str| Err(E::OutOfRange(text.to_owned()));
        let cases = [
            ("name", "app", user(1000, 1001, &[1001, 10, 2000])),
            ("known number", "1000", user(1000, 1001, &[1001, 10, 2000])),
            ("unknown number", "5", user(5, 0, &[0])),
            ("name and group", "app:extra", user(1000, 2000, &[2000, 10])),
            ("number and group", "5:extra", user(5, 2000, &[2000])),
            ("numbers", "1000:7", user(1000, 7, &[7, 10, 2000])),
            ("name and number", "app:7", user(1000, 7, &[7, 10, 2000])),
            ("empty", "", user(0, 0, &[0, 10])),
            ("no group", "0:", user(0, 0, &[0, 10])),
            ("no user", ":10", user(0, 10, &[10])),
            ("plus", "+1000", user(1000, 1001, &[1001, 10, 2000])),
            ("largest", "2147483647", user(ID_MAX, 0, &[0])),
            ("too large", "2147483648", range("2147483648")),
            ("wraps to root, and is a name", "4294967296", range("4294967296")),
            ("beyond 64 bits", "99999999999999999999", range("99999999999999999999")),
            ("negative", "-1", range("-1")),
            ("group too large", "0:4294967296", range("0:4294967296")),
            ("unknown name", "nobody", Err(E::NoUser("nobody".to_owned()))),
            ("name with a bad id", "bad", Err(E::NoUser("bad".to_owned()))),
            ("unknown group", "app:nobody", Err(E::NoGroup("nobody".to_owned()))),
            ("two colons", "a:b:c", Err(E::Syntax("a:b:c".to_owned()))),
        ];
        for (case, text, want) in cases {
            let got = text.parse::<UserSpec>().and_then(|spec| spec.resolve(&files()));
            assert_eq!(got, want, "{case}");
        }
    }

    #[test]
    fn without_files() {
        let got = UserSpec::root().resolve(&AccountFiles::default());
        assert_eq!(got.map(|user| user.additional_gids), Ok(vec![0]));
    }
}
