//! How identities are called: random characters of an alphabet, or words run together. Keeps nothing.

use rand::RngExt;
use rand::rngs::StdRng;

/// Short words that are told apart on the telephone, one on each line.
const WORDS: &str = include_str!("words.txt");

/// The alphabet unless another is chosen: letters, digits, `_` and `-`.
pub const URL_SAFE: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";

/// How names are made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameForm {
    /// So many characters out of these, at least one of each.
    Characters(usize, Vec<char>),
    /// So many capitalised words without anything between them.
    Words(usize),
}

impl NameForm {
    /// So many characters of [`URL_SAFE`].
    #[must_use]
    pub fn url_safe(length: usize) -> Self {
        Self::Characters(length, URL_SAFE.chars().collect())
    }

    /// A name, which may be somebody's already.
    pub(super) fn make(&self, words: &[&str], rng: &mut StdRng) -> String {
        match self {
            Self::Characters(length, alphabet) => (0..*length)
                .map(|_| alphabet[rng.random_range(0..alphabet.len())])
                .collect(),
            Self::Words(count) => {
                let mut name = String::new();
                for _ in 0..*count {
                    let word = words[rng.random_range(0..words.len())];
                    let (first, rest) = word.split_at(1);
                    name.push_str(&first.to_ascii_uppercase());
                    name.push_str(rest);
                }
                name
            }
        }
    }
}

/// All words.
pub(super) fn words() -> Vec<&'static str> {
    WORDS.lines().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn names_have_the_form_that_was_asked_for() {
        let words = words();
        let mut rng = StdRng::seed_from_u64(1);
        let name = NameForm::url_safe(21).make(&words, &mut rng);
        assert!(name.len() == 21 && name.chars().all(|c| URL_SAFE.contains(c)));
        let name = NameForm::Words(3).make(&words, &mut rng);
        assert_eq!(name.chars().filter(char::is_ascii_uppercase).count(), 3);
        let mut sorted = words.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted, words, "in order, each once");
        let is_plain = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase());
        assert!(words.iter().all(is_plain) && words.len() >= 512);
    }
}
