//! Owns the writing of XML: elements with attributes, text and children, escaped. Refuses to parse.

use std::fmt::{self, Write};

/// An element under construction. Names are ours and literal; values may be anything.
#[derive(Clone, Debug)]
pub struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    text: String,
    children: Vec<Element>,
}

impl Element {
    pub fn new(name: &'static str) -> Self {
        Self { name, attributes: Vec::new(), text: String::new(), children: Vec::new() }
    }

    pub fn attr(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.attributes.push((name, value.to_string()));
        self
    }

    pub fn text(mut self, text: impl fmt::Display) -> Self {
        self.text = text.to_string();
        self
    }

    pub fn child(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    /// Indented by two blanks; an element with text stands on one line.
    pub fn render(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, 0).unwrap_or_else(|_| unreachable!("writing into a String cannot fail"));
        out
    }

    fn write(&self, out: &mut String, depth: usize) -> fmt::Result {
        write!(out, "{:1$}<{2}", "", depth * 2, self.name)?;
        for (name, value) in &self.attributes {
            write!(out, " {name}=\"{}\"", escape(value))?;
        }
        if self.children.is_empty() {
            if self.text.is_empty() {
                return out.write_str("/>\n");
            }
            return writeln!(out, ">{}</{}>", escape(&self.text), self.name);
        }
        out.write_str(">\n")?;
        for child in &self.children {
            child.write(out, depth + 1)?;
        }
        writeln!(out, "{:1$}</{2}>", "", depth * 2, self.name)
    }
}

/// Escapes for text and for attributes alike. What XML 1.0 cannot carry at all becomes U+FFFD.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // A parser would turn these into blanks or line feeds.
            '\t' | '\n' | '\r' => out.push_str(&format!("&#{};", u32::from(c))),
            // https://www.w3.org/TR/xml/#charsets
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        for (text, escaped) in [
            ("größe 1", "größe 1"),
            ("a</name><devices>\"'&]]>", "a&lt;/name&gt;&lt;devices&gt;&quot;&apos;&amp;]]&gt;"),
            ("a\nb\u{1}c\u{fffe}", "a&#10;b\u{fffd}c\u{fffd}"),
        ] {
            assert_eq!(escape(text), escaped);
        }
    }

    #[test]
    fn shapes() {
        let tree = Element::new("a").attr("k", 1).child(Element::new("b")).child(Element::new("c").text("<"));
        assert_eq!(tree.render(), "<a k=\"1\">\n  <b/>\n  <c>&lt;</c>\n</a>\n");
    }
}
