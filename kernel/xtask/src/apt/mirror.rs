//! Debian's mirror among the machine's sources of packages.

/// For `apt-get indextargets`: what [`debian`] reads.
pub(super) const FORMAT: &str = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)|$(SOURCESENTRY)";

/// Where the machine gets Debian from, and how it is verified.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Mirror {
    pub(super) uri: String,
    /// The value of a `Signed-By` field, a key itself included; none where
    /// apt's own keys are meant.
    pub(super) signed_by: Option<String>,
}

impl Mirror {
    /// `suite` as a source of packages; of `kinds`, as `deb` and `deb-src` are.
    pub(super) fn source(&self, kinds: &str, suite: &str) -> String {
        let uri = &self.uri;
        let keys = self.signed_by.as_ref().map(|keys| format!("Signed-By: {keys}\n"));
        let keys = keys.unwrap_or_default();
        format!("Types: {kinds}\nURIs: {uri}\nSuites: {suite}\nComponents: main\n{keys}")
    }
}

/// The URI of Debian's archive, without its end, and the file that names it,
/// of what `apt-get indextargets` has `said`. That of security updates is
/// another archive.
pub(super) fn debian(said: &str) -> Option<(&str, &str)> {
    said.lines().find_map(|line| {
        let mut fields = line.split('|');
        if (fields.next(), fields.next(), fields.next())
            != (Some("Debian"), Some("Debian"), Some("main"))
        {
            return None;
        }
        let uri = fields.next()?.trim_end_matches('/');
        // The entry's place in the file follows.
        let (file, _) = fields.next()?.rsplit_once(':')?;
        Some((uri, file))
    })
}

/// Which keys verify `uri`, by `text` of a file called `file`.
pub(super) fn signed_by(file: &str, text: &str, uri: &str) -> Option<String> {
    if file.ends_with(".sources") {
        stanzas(text).iter().find_map(|stanza| of_stanza(stanza, uri))
    } else {
        text.lines().find_map(|line| of_line(line, uri))
    }
}

fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// Fields of the paragraphs of a file of RFC 822's kind: lower case names, and
/// values with all their lines.
fn stanzas(text: &str) -> Vec<Vec<(String, String)>> {
    let mut stanzas = vec![Vec::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some(stanza) = stanzas.last_mut() else { break };
        if line.trim().is_empty() {
            stanzas.push(Vec::new());
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                *value += "\n";
                *value += line;
            }
        } else if let Some((name, value)) = line.split_once(':') {
            stanza.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    stanzas
}

fn of_stanza(stanza: &[(String, String)], uri: &str) -> Option<String> {
    let field = |name| stanza.iter().find(|field| field.0 == name).map(|field| &field.1);
    let has = |value: &&String| value.split_whitespace().any(|other| same(other, uri));
    field("uris").filter(has).and_then(|_| field("signed-by")).cloned()
}

/// Of a line `deb [OPTION=VALUE ...] URI SUITE COMPONENT ...`.
fn of_line(line: &str, uri: &str) -> Option<String> {
    let (options, rest) =
        line.trim().strip_prefix("deb ")?.trim().strip_prefix('[')?.split_once(']')?;
    if !same(rest.split_whitespace().next()?, uri) {
        return None;
    }
    let keys = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="))?;
    Some(keys.replace(',', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: &str = "\
# a comment
Types: deb
URIs: http://mirror/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /keys/debian.gpg

Types: deb
uris: https://mirror/security
# in between
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----
";

    #[test]
    fn the_mirror_of_debian() {
        let other = "Other|Other|main|https://other/apt/|/etc/apt/sources.list:1\n";
        let security = "Debian|Debian-Security|main|http://mirror/security/|/etc/a.sources:2\n";
        let ours = "Debian|Debian|main|http://mirror/debian/|/etc/a.sources:1\n";
        let found = Some(("http://mirror/debian", "/etc/a.sources"));
        assert_eq!(debian(&format!("{other}{security}{ours}")), found);
        assert_eq!(debian(&format!("{other}{security}")), None);
        assert_eq!(debian(""), None);
    }

    #[test]
    fn keys_of_stanzas() {
        let of = |uri| signed_by("a.sources", SOURCES, uri);
        assert_eq!(of("http://mirror/debian").as_deref(), Some("/keys/debian.gpg"));
        let key = of("https://mirror/security/").unwrap_or_default();
        assert!(key.starts_with("\n -----BEGIN") && key.ends_with("BLOCK-----"), "{key}");
        assert_eq!(key.lines().filter(|line| line.starts_with(' ')).count(), 4);
        assert_eq!(of("http://mirror"), None);
        assert_eq!(
            signed_by("a.sources", "URIs: http://mirror/debian\n", "http://mirror/debian"),
            None
        );
    }

    #[test]
    fn keys_of_lines() {
        let list = "# deb [signed-by=/no] http://a/debian sid main\n\
                    deb-src [signed-by=/no] http://a/debian sid main\n\
                    deb http://b/debian sid main\n\
                    deb [ arch=amd64 signed-by=/one,/two ] http://a/debian/ sid main\n";
        let of = |uri| signed_by("sources.list", list, uri);
        assert_eq!(of("http://a/debian").as_deref(), Some("/one /two"));
        assert_eq!(of("http://b/debian"), None);
        assert_eq!(of("http://c/debian"), None);
    }

    #[test]
    fn a_suite_as_a_source() {
        let mirror = |signed_by| Mirror { uri: "http://mirror/debian".to_owned(), signed_by };
        let source = mirror(None).source("deb", "unstable");
        assert_eq!(
            source,
            "Types: deb\nURIs: http://mirror/debian\nSuites: unstable\nComponents: main\n"
        );
        for uri in ["http://mirror/debian", "https://mirror/security"] {
            let keys = signed_by("a.sources", SOURCES, uri);
            let mirror = Mirror { uri: uri.to_owned(), signed_by: keys.clone() };
            let source = mirror.source("deb deb-src", "unstable");
            let read = signed_by("b.sources", &source, uri);
            assert!(keys.is_some());
            assert_eq!(read, keys);
        }
    }
}
