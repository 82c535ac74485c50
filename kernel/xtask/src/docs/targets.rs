//! What commands of cargo build, which has to exist.

use crate::workspace::Package;

/// Options that name a target, with the kinds that it can be.
const NAMING: [(&str, &str); 4] =
    [("--test", "test"), ("--bin", "bin"), ("--example", "example"), ("--bench", "bench")];

/// Why cargo can't do `args`, as far as names go.
pub(super) fn fault(args: &[String], packages: &[Package]) -> Option<String> {
    let named = |options: &[&str]| -> Vec<&String> {
        let pairs = args.windows(2).filter(|pair| options.contains(&pair[0].as_str()));
        pairs.map(|pair| &pair[1]).collect()
    };
    let names = named(&["-p", "--package"]);
    let known = |name: &&&String| packages.iter().any(|package| package.name == ***name);
    if let Some(name) = names.iter().find(|name| !known(name)) {
        return Some(format!("no package {name}"));
    }
    let within =
        packages.iter().filter(|p| names.is_empty() || names.iter().any(|n| **n == p.name));
    let targets: Vec<&(String, String)> = within.flat_map(|package| &package.targets).collect();
    NAMING.iter().find_map(|(option, kind)| {
        let has = |name: &&&String| targets.iter().any(|(of, is)| of == kind && is == **name);
        let missing = named(&[option]).iter().find(|name| !has(name)).map(|name| (*name).clone());
        missing.map(|name| format!("no {kind} {name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_and_targets_have_to_exist() {
        let targets = vec![("test".to_owned(), "t".to_owned())];
        let a = Package { name: "a".to_owned(), targets, ..Package::default() };
        let b = Package { name: "b".to_owned(), ..Package::default() };
        let packages = [a, b];
        let fault = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            fault(&words, &packages)
        };
        assert_eq!(fault("test -p a --test t"), None);
        assert_eq!(fault("test --test t"), None);
        assert_eq!(fault("doc --workspace"), None);
        assert_eq!(fault("test -p c").as_deref(), Some("no package c"));
        assert_eq!(fault("test -p b --test t").as_deref(), Some("no test t"));
        assert_eq!(fault("run -p a --bin t").as_deref(), Some("no bin t"));
    }
}
