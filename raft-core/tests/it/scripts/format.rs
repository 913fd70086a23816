//! The text files: commands and comments flush left, and below each command, indented, what came of it.

use std::fmt::Write as _;

/// What a line that belongs to an answer begins with.
const INDENT: &str = "    ";

/// One command of a script.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Command<'a> {
    /// Its line in the file, from 1 on.
    pub(super) line: usize,
    /// Comments and empty lines before it.
    lead: Vec<&'a str>,
    pub(super) text: &'a str,
    /// What the file says that comes of it, without the indent.
    expected: Vec<&'a str>,
}

/// A script as it is in its file.
#[derive(Debug)]
pub(super) struct Script<'a> {
    commands: Vec<Command<'a>>,
    /// Comments after the last command.
    tail: Vec<&'a str>,
}

/// The answers to the commands of a script, in order, line by line.
pub(super) type Answers = Vec<Vec<String>>;

impl<'a> Script<'a> {
    /// Takes a file apart.
    ///
    /// # Errors
    /// It does not begin with a comment that says what it is about, or with an answer to nothing.
    pub(super) fn parse(source: &'a str) -> Result<Self, String> {
        if !source.starts_with('#') {
            return Err("1: a script begins with a comment that says what it shows".to_owned());
        }
        let mut commands: Vec<Command<'a>> = Vec::new();
        let mut lead = Vec::new();
        for (text, line) in source.lines().zip(1..) {
            let text = text.trim_end();
            if let Some(answer) = text.strip_prefix(INDENT) {
                match commands.last_mut().filter(|_| lead.is_empty()) {
                    Some(command) => command.expected.push(answer),
                    None => {
                        return Err(format!("{line}: an indented line answers a command, and there is none before it"));
                    }
                }
            } else if text.is_empty() || text.starts_with('#') {
                lead.push(text);
            } else {
                commands.push(Command { line, lead: std::mem::take(&mut lead), text, expected: Vec::new() });
            }
        }
        Ok(Script { commands, tail: lead })
    }

    pub(super) fn commands(&self) -> &[Command<'a>] {
        &self.commands
    }

    /// The file as it is with these answers.
    pub(super) fn with(&self, answers: &Answers) -> String {
        let mut text = String::new();
        for (command, answer) in self.commands.iter().zip(answers) {
            for line in command.lead.iter().chain([&command.text]) {
                let _ = writeln!(text, "{line}");
            }
            for line in answer {
                let _ = writeln!(text, "{INDENT}{line}");
            }
        }
        for line in &self.tail {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// Where the answers are not those in the file, command by command: `-` is expected, `+` is what came. `None` when all is well.
    pub(super) fn difference(&self, name: &str, answers: &Answers) -> Option<String> {
        let mut text = String::new();
        for (command, answer) in self.commands.iter().zip(answers) {
            if command.expected != *answer {
                let _ = writeln!(text, "{name}:{}: {}", command.line, command.text);
                push_difference(&mut text, &command.expected, answer);
            }
        }
        (!text.is_empty()).then_some(text)
    }
}

/// The lines that two answers share at their beginnings and ends show where the others belong.
fn push_difference(text: &mut String, expected: &[&str], got: &[String]) {
    let same = |(a, b): &(&&str, &String)| *a == b;
    let before = expected.iter().zip(got).take_while(same).count();
    let (old, new) = (&expected[before..], &got[before..]);
    let after = old.iter().rev().zip(new.iter().rev()).take_while(same).count();
    let mut push = |mark: char, lines: &mut dyn Iterator<Item = &str>| {
        for line in lines {
            let _ = writeln!(text, "  {mark} {line}");
        }
    };
    push(' ', &mut expected[..before].iter().copied());
    push('-', &mut old[..old.len() - after].iter().copied());
    push('+', &mut new[..new.len() - after].iter().map(String::as_str));
    push(' ', &mut old[old.len() - after..].iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "# About.\n\nfirst 1\n    a\n    b\n    c\n# why\nsecond\n\n# end\n";

    fn answers(lines: [&[&str]; 2]) -> Answers {
        lines.iter().map(|lines| lines.iter().map(|line| (*line).to_owned()).collect()).collect()
    }

    #[test]
    fn a_script_with_its_own_answers_is_itself() {
        let script = Script::parse(SOURCE).unwrap();
        let answers = answers([&["a", "b", "c"], &[]]);
        assert_eq!(script.with(&answers), SOURCE);
        assert_eq!(script.difference("x.txt", &answers), None);
    }

    #[test]
    fn a_difference_names_the_command_and_shows_its_surroundings() {
        let script = Script::parse(SOURCE).unwrap();
        let answers = answers([&["a", "B", "c"], &["d"]]);
        let shown = "x.txt:3: first 1\n    a\n  - b\n  + B\n    c\nx.txt:8: second\n  + d\n";
        assert_eq!(script.difference("x.txt", &answers).as_deref(), Some(shown));
        assert_eq!(script.with(&answers), "# About.\n\nfirst 1\n    a\n    B\n    c\n# why\nsecond\n    d\n\n# end\n");
    }

    #[test]
    fn what_is_no_script_is_refused_with_its_line() {
        assert!(Script::parse("first\n").unwrap_err().starts_with("1: "));
        assert!(Script::parse("# About.\n    answer\n").unwrap_err().starts_with("2: "));
        assert!(Script::parse("# About.\nfirst\n\n    answer\n").unwrap_err().starts_with("4: "));
    }
}
