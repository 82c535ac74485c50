//! The frame of the page.

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
.box{overflow:visible}th,td{white-space:normal;padding:.2rem .3rem}table{font-size:.8rem}}";

/// Text as content or attribute.
pub(super) fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

/// The whole page.
pub(super) fn page(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// A table in a box that scrolls, the first `words` columns left-aligned.
pub(super) fn table(header: &[String], rows: &[Vec<String>], words: usize) -> String {
    let row = |row: &[String], tag: &str| {
        let cell = |(index, cell): (usize, &String)| {
            let class = if index < words { " class=\"words\"" } else { "" };
            format!("<{tag}{class}>{}</{tag}>", escape(cell))
        };
        format!("<tr>{}</tr>", row.iter().enumerate().map(cell).collect::<String>())
    };
    let rows: String = rows.iter().map(|cells| row(cells, "td") + "\n").collect();
    let head = row(header, "th");
    format!(
        "<div class=\"box\"><table>\n<thead>{head}</thead>\n<tbody>\n{rows}</tbody></table></div>\n"
    )
}
