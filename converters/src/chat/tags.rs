//! Transformers' own tags: `{% generation %} ... {% endgeneration %}` marks an assistant's text and
//! changes nothing in the rendering, so it becomes a plain scope before the template is compiled.

/// The template with each generation tag as `with`, whitespace control kept.
pub(super) fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let length = if rest.starts_with("{#") {
            rest.find("#}").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("{{") {
            tag_length(rest, "}}")
        } else if rest.starts_with("{%") {
            tag_length(rest, "%}")
        } else {
            1
        };
        let (tag, after) = rest.split_at(length);
        out.push_str(&replaced(tag).unwrap_or_else(|| tag.to_owned()));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Bytes up to and with `close`, which does not count inside a string literal.
fn tag_length(text: &str, close: &str) -> usize {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut i = 2;
    while i < bytes.len() {
        let byte = bytes[i];
        match quote {
            Some(_) if byte == b'\\' => i += 1,
            Some(q) if byte == q => quote = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
            None if bytes[i..].starts_with(close.as_bytes()) => return i + close.len(),
            None => {}
        }
        i += 1;
    }
    text.len()
}

fn replaced(tag: &str) -> Option<String> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let (before, inner) = match inner.strip_prefix(['-', '+']) {
        Some(stripped) => (&inner[..1], stripped),
        None => ("", inner),
    };
    let (after, inner) = match inner.strip_suffix(['-', '+']) {
        Some(stripped) => (&inner[inner.len() - 1..], stripped),
        None => ("", inner),
    };
    let word = match inner.trim() {
        "generation" => "with",
        "endgeneration" => "endwith",
        _ => return None,
    };
    Some(format!("{{%{before} {word} {after}%}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_scopes_and_strings_stay() {
        assert_eq!(
            without_generation("a{%- generation -%}b{% endgeneration %}{{ '{% generation %}' }}{"),
            "a{%- with -%}b{% endwith %}{{ '{% generation %}' }}{"
        );
        assert_eq!(
            without_generation("{# {% generation %} #}x{% if a"),
            "{# {% generation %} #}x{% if a"
        );
    }
}
