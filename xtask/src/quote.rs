//! Texts as words of other languages, where more than one file writes that language. PURE.

/// One word for a POSIX shell: as it is where that is safe, else in single quotes.
#[must_use]
pub fn shell(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./-+:@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_shell() {
        for (word, quoted) in [
            ("/a/b-c.d", "/a/b-c.d"),
            ("", "''"),
            ("a b", "'a b'"),
            ("$HOME", "'$HOME'"),
            ("it's", r"'it'\''s'"),
            ("~", "'~'"),
            ("é", "'é'"),
        ] {
            assert_eq!(shell(word), quoted);
        }
    }
}
