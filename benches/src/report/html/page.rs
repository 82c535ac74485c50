//! The frame of the page.

use std::fmt::Write;

/// Without colours that paper lacks; wide things scroll in their own box.
const STYLE: &str = "\
:root{color-scheme:light}\
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem;color:#111;\
background:#fff}\
h1{font-size:1.5rem;line-height:1.2}h2{font-size:1.15rem;margin-top:2rem;line-height:1.3}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{font-weight:600}\
dd{margin:0;grid-column:2;overflow-wrap:anywhere}\
p,li{max-width:45rem;overflow-wrap:anywhere}code{overflow-wrap:anywhere}\
.box{overflow-x:auto}\
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .6rem;border-bottom:1px solid #ccc;text-align:right;white-space:nowrap}\
.words{text-align:left}\
.charts{display:flex;flex-wrap:wrap;gap:1rem}\
section p{margin:.4rem 0}\
figure{margin:.6rem 0;max-width:100%}figcaption{font-size:.9rem;color:#333}\
.way{display:inline-block;margin-right:1em}\
svg{max-width:100%;height:auto;display:block}\
.key{display:inline-block;width:.8em;height:.8em;margin-right:.3em;\
-webkit-print-color-adjust:exact;print-color-adjust:exact}\
@media (max-width:30rem){th,td{padding:.25rem .35rem}\
dl{display:block}dd{margin-bottom:.3rem}}\
@media print{body{max-width:none;padding:0;font-size:11pt}section,figure,table{break-inside:avoid}h2{break-after:avoid}\
.box{overflow:visible}}";

/// Text as content or attribute.
pub(in crate::report) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            other => escaped.push(other),
        }
    }
    escaped
}

/// The whole page.
pub(in crate::report) fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// A table in a box that scrolls, the first `words` columns left-aligned.
pub(in crate::report) fn table(
    header: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
    words: usize,
) -> String {
    let class = |index: usize| if index < words { " class=\"words\"" } else { "" };
    let mut text = "<div class=\"box\"><table>\n<thead><tr>".to_owned();
    for (index, name) in header.iter().enumerate() {
        let _ = write!(text, "<th{}>{}</th>", class(index), escape(name));
    }
    text += "</tr></thead>\n<tbody>\n";
    for row in rows {
        text += "<tr>";
        for (index, cell) in row.iter().enumerate() {
            let _ = write!(text, "<td{}>{}</td>", class(index), escape(cell));
        }
        text += "</tr>\n";
    }
    text + "</tbody></table></div>\n"
}
