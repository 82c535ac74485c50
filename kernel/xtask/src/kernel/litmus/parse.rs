//! Litmus tests in C, as far as the kernel's own go.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};

/// A litmus test.
#[derive(Debug)]
pub(super) struct Litmus {
    /// `Never` or `Sometimes`, as its comment says.
    pub(super) expected: String,
    /// What locations begin with, unless with 0: a number, or a location.
    pub(super) initial: BTreeMap<String, Expr>,
    pub(super) threads: Vec<Thread>,
    /// What is said to happen never, or sometimes.
    pub(super) exists: Expr,
}

#[derive(Debug)]
pub(super) struct Thread {
    /// Its parameters, which are locations.
    pub(super) locations: Vec<String>,
    pub(super) body: Vec<Statement>,
}

#[derive(Debug)]
pub(super) enum Statement {
    /// A register and what is assigned to it.
    Assign(String, Expr),
    /// For what it does.
    Call(Expr),
    If(Expr, Vec<Statement>, Vec<Statement>),
}

#[derive(Debug)]
pub(super) enum Expr {
    Number(i64),
    Name(String),
    /// `*name` as an argument: the location that the name stands for.
    Deref(String),
    Call(String, Vec<Expr>),
    Binary(Box<Expr>, String, Box<Expr>),
    Not(Box<Expr>),
}

impl Litmus {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let expected = text.split_once("Result:").context("no `Result:`")?.1;
        let expected = expected.split_whitespace().next().unwrap_or_default().to_owned();
        let (_, text) = text.split_once('\n').context("no text")?;
        let mut tokens = Tokens { all: tokens(&uncommented(text)?), at: 0 };
        let initial = initial(&mut tokens)?;
        let mut threads = Vec::new();
        while tokens.peek().starts_with('P') {
            tokens.next();
            threads.push(thread(&mut tokens)?);
        }
        if tokens.accept("locations") {
            while !tokens.accept("]") {
                tokens.some()?;
            }
        }
        tokens.expect("exists")?;
        let exists = binary(&mut tokens, 0)?;
        if !tokens.peek().is_empty() {
            bail!("{:?} after the condition", tokens.peek());
        }
        Ok(Self { expected, initial, threads, exists })
    }
}

fn uncommented(text: &str) -> Result<String> {
    let mut rest = text;
    let mut out = String::new();
    // `(*p)` is none.
    let ends = [("(* ", "*)"), ("(*\n", "*)"), ("/*", "*/"), ("//", "\n")];
    while let Some((at, end)) =
        ends.iter().filter_map(|(begin, end)| Some((rest.find(begin)?, end))).min()
    {
        out.push_str(&rest[..at]);
        let length = rest[at..].find(end).context("a comment does not end")? + end.len();
        rest = &rest[at + length..];
        out.push(' ');
    }
    out.push_str(rest);
    Ok(out)
}

fn tokens(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let word = |c: char| c == '_' || c.is_ascii_alphanumeric();
    let mut joins = false;
    for c in text.chars() {
        let last = tokens.last_mut().filter(|_| joins);
        joins = !c.is_whitespace();
        match last {
            _ if !joins => {}
            Some(last) if word(c) && last.ends_with(word) => last.push(c),
            Some(last)
                if matches!((last.as_str(), c), ("=" | "!", '=') | ("/", '\\') | ("\\", '/')) =>
            {
                last.push(c);
            }
            _ => tokens.push(c.to_string()),
        }
    }
    tokens
}

struct Tokens {
    all: Vec<String>,
    at: usize,
}

impl Tokens {
    /// The next, empty at the end.
    fn peek(&self) -> &str {
        self.all.get(self.at).map_or("", String::as_str)
    }

    fn next(&mut self) -> String {
        let next = self.peek().to_owned();
        self.at += 1;
        next
    }

    fn some(&mut self) -> Result<String> {
        match self.next() {
            next if next.is_empty() => bail!("it ends too early"),
            next => Ok(next),
        }
    }

    fn accept(&mut self, token: &str) -> bool {
        let is = self.peek() == token;
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        let next = self.next();
        if next != token {
            bail!("{next:?} in place of {token:?}");
        }
        Ok(())
    }
}

/// `{ x=1; p=y; }`
fn initial(tokens: &mut Tokens) -> Result<BTreeMap<String, Expr>> {
    let mut initial = BTreeMap::new();
    tokens.expect("{")?;
    while !tokens.accept("}") {
        tokens.accept("int");
        let name = tokens.some()?;
        tokens.expect("=")?;
        initial.insert(name, primary(tokens)?);
        tokens.expect(";")?;
    }
    Ok(initial)
}

fn thread(tokens: &mut Tokens) -> Result<Thread> {
    tokens.expect("(")?;
    let mut locations = Vec::new();
    let mut last = String::new();
    loop {
        match tokens.some()?.as_str() {
            end @ ("," | ")") => {
                if !last.is_empty() {
                    locations.push(std::mem::take(&mut last));
                }
                if end == ")" {
                    break;
                }
            }
            word => word.clone_into(&mut last),
        }
    }
    Ok(Thread { locations, body: block(tokens)? })
}

/// One statement, or several in braces.
fn block(tokens: &mut Tokens) -> Result<Vec<Statement>> {
    let mut all = Vec::new();
    if !tokens.accept("{") {
        all.extend(statement(tokens)?);
        return Ok(all);
    }
    while !tokens.accept("}") {
        all.extend(statement(tokens)?);
    }
    Ok(all)
}

/// None for a declaration.
fn statement(tokens: &mut Tokens) -> Result<Option<Statement>> {
    if tokens.accept("if") {
        tokens.expect("(")?;
        let condition = binary(tokens, 0)?;
        tokens.expect(")")?;
        let then = block(tokens)?;
        let otherwise = if tokens.accept("else") { block(tokens)? } else { Vec::new() };
        return Ok(Some(Statement::If(condition, then, otherwise)));
    }
    if tokens.accept("int") {
        while tokens.accept("*") {}
    }
    let name = tokens.some()?;
    if tokens.accept(";") {
        return Ok(None);
    }
    if tokens.accept("=") {
        let value = binary(tokens, 0)?;
        tokens.expect(";")?;
        return Ok(Some(Statement::Assign(name, value)));
    }
    if tokens.peek() != "(" {
        bail!("{name} {}: no statement that is understood", tokens.peek());
    }
    tokens.at -= 1;
    let call = primary(tokens)?;
    tokens.expect(";")?;
    Ok(Some(Statement::Call(call)))
}

/// Operators, those that bind least first.
const OPERATORS: [&[&str]; 3] = [&["\\/"], &["/\\"], &["==", "!=", "="]];

fn binary(tokens: &mut Tokens, level: usize) -> Result<Expr> {
    let Some(operators) = OPERATORS.get(level) else { return primary(tokens) };
    let mut left = binary(tokens, level + 1)?;
    while operators.contains(&tokens.peek()) {
        let operator = tokens.next();
        let right = binary(tokens, level + 1)?;
        left = Expr::Binary(Box::new(left), operator, Box::new(right));
    }
    Ok(left)
}

fn primary(tokens: &mut Tokens) -> Result<Expr> {
    let token = tokens.some()?;
    match token.as_str() {
        "(" => {
            let inner = binary(tokens, 0)?;
            tokens.expect(")")?;
            return Ok(inner);
        }
        "!" | "~" => return Ok(Expr::Not(Box::new(primary(tokens)?))),
        "*" => return Ok(Expr::Deref(tokens.some()?)),
        _ => {}
    }
    if let Ok(number) = token.parse() {
        // `1:r0`, a register of a thread.
        if tokens.accept(":") {
            return Ok(Expr::Name(format!("{token}:{}", tokens.some()?)));
        }
        return Ok(Expr::Number(number));
    }
    if !token.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic()) {
        bail!("{token:?} is not understood");
    }
    if !tokens.accept("(") {
        return Ok(Expr::Name(token));
    }
    let mut args = Vec::new();
    while !tokens.accept(")") {
        args.push(binary(tokens, 0)?);
        tokens.accept(",");
    }
    Ok(Expr::Call(token, args))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_test() {
        let text = "C a\n(* Result: Never *)\n{ p=y; }\nP0(int *x, int **p) // says\n{\n\tint r0;\n\
                    \tr0 = READ_ONCE(*x);\n\tif (r0 == 0)\n\t\tWRITE_ONCE(*p, 1);\n}\n\
                    exists (0:r0=1 /\\ (x=2 \\/ ~(x=3)))\n";
        let litmus = Litmus::parse(text).unwrap();
        assert_eq!(litmus.expected, "Never");
        assert_eq!(litmus.initial.len(), 1);
        assert_eq!(litmus.threads[0].locations, ["x", "p"]);
        assert_eq!(litmus.threads[0].body.len(), 2);
        assert!(matches!(&litmus.exists, Expr::Binary(_, and, _) if and == "/\\"));
    }

    #[test]
    fn what_is_not_understood() {
        for body in ["*x = 1;", "x++;", "r0 = ;", ""] {
            let text =
                format!("C a\n(* Result: Never *)\n{{}}\nP0(int *x)\n{{ {body}\nexists (x=1)");
            assert!(Litmus::parse(&text).is_err(), "{body}");
        }
    }
}
