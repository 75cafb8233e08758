//! A shell's words: how make writes the commands that it would run.

/// Splits a line of shell into its commands, and each of them into its words.
///
/// It knows what kbuild writes: quotes, backslashes and `;`. Nothing is expanded.
pub(crate) fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut rest = line.chars();
    while let Some(character) = rest.next() {
        match character {
            '\'' => word.get_or_insert_default().extend(rest.by_ref().take_while(|c| *c != '\'')),
            '"' => double_quoted(&mut rest, word.get_or_insert_default()),
            '\\' => word.get_or_insert_default().extend(rest.next()),
            ';' => {
                end(&mut commands, &mut word);
                commands.push(Vec::new());
            }
            space if space.is_whitespace() => end(&mut commands, &mut word),
            other => word.get_or_insert_default().push(other),
        }
    }
    end(&mut commands, &mut word);
    commands.retain(|command| !command.is_empty());
    commands
}

fn double_quoted(rest: &mut std::str::Chars<'_>, word: &mut String) {
    while let Some(character) = rest.next() {
        match character {
            '"' => return,
            '\\' => match rest.next() {
                Some(escaped @ ('"' | '\\' | '$' | '`')) => word.push(escaped),
                Some(other) => word.extend(['\\', other]),
                None => {}
            },
            other => word.push(other),
        }
    }
}

fn end(commands: &mut [Vec<String>], word: &mut Option<String>) {
    if let (Some(command), Some(word)) = (commands.last_mut(), word.take()) {
        command.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_words_and_commands_together() {
        let line = r#"set -e;  echo '  gcc -c a; b' ; gcc -DX='"a b"' "-Dy=\"z\"" c\ d.c; trap 'rm x;' INT"#;
        let found = commands(line);
        assert_eq!(found[0], ["set", "-e"]);
        assert_eq!(found[1], ["echo", "  gcc -c a; b"]);
        assert_eq!(found[2], ["gcc", r#"-DX="a b""#, r#"-Dy="z""#, "c d.c"]);
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn what_is_cut_off_is_taken_as_it_is() {
        assert_eq!(commands("a 'b"), [["a", "b"]]);
        assert_eq!(commands("a \"b\\"), [["a", "b"]]);
        assert!(commands(" ;; ").is_empty());
    }
}
