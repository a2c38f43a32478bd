//! What a terminal can show: colours, and characters beyond ASCII. Colour only ever underlines what words say.

use ratatui::{
    buffer::Buffer,
    style::{Color, Modifier, Style},
};

use crate::core::{finding::Severity, state::State};

/// How many colours there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// None: bold, reverse and underlined do without.
    None,
    /// The terminal's own sixteen.
    Sixteen,
    /// 256.
    Many,
}

/// What a terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Nothing but ASCII.
    pub ascii: bool,
    /// Colours.
    pub colours: Colours,
}

impl Abilities {
    /// Of a column of names, of a selection of anything that is not the matter itself.
    #[must_use]
    pub fn dim(self) -> Style {
        match self.colours {
            Colours::None => Style::new(),
            Colours::Sixteen => Style::new().fg(Color::DarkGray),
            Colours::Many => Style::new().fg(Color::Indexed(245)),
        }
    }

    /// The heads of tables, the titles of parts.
    #[must_use]
    pub fn head(self) -> Style {
        self.coloured(Color::Cyan, 80).add_modifier(Modifier::BOLD)
    }

    /// The line that is selected, the view that is open.
    #[must_use]
    pub fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// A curve.
    #[must_use]
    pub fn curve(self) -> Style {
        self.coloured(Color::Green, 114)
    }

    /// What is wrong.
    #[must_use]
    pub fn bad(self) -> Style {
        self.coloured(Color::Red, 203).add_modifier(Modifier::BOLD)
    }

    /// What deserves a look.
    #[must_use]
    pub fn notable(self) -> Style {
        self.coloured(Color::Yellow, 221)
    }

    /// A severity.
    #[must_use]
    pub fn severity(self, severity: Severity) -> Style {
        match severity {
            Severity::Info => self.coloured(Color::Cyan, 80),
            Severity::Warning => self.notable().add_modifier(Modifier::BOLD),
            Severity::Critical => self.bad(),
        }
    }

    /// A state.
    #[must_use]
    pub fn state(self, state: State) -> Style {
        match state {
            State::ESTABLISHED => self.curve(),
            State::CLOSE_WAIT => self.notable(),
            State::SYN_SENT | State::SYN_RECV => self.coloured(Color::Cyan, 80),
            State::LISTEN => Style::new(),
            _ => self.dim(),
        }
    }

    fn coloured(self, sixteen: Color, many: u8) -> Style {
        match self.colours {
            Colours::None => Style::new(),
            Colours::Sixteen => Style::new().fg(sixteen),
            Colours::Many => Style::new().fg(Color::Indexed(many)),
        }
    }
}

/// Puts ASCII in the place of everything else, cell by cell.
pub fn to_ascii(buffer: &mut Buffer) {
    for cell in &mut buffer.content {
        let symbol = cell.symbol();
        if !symbol.is_ascii() {
            let ascii = symbol.chars().next().map_or(' ', in_ascii);
            cell.set_char(ascii);
        }
    }
}

fn in_ascii(c: char) -> char {
    match c {
        '─' | '━' => '-',
        '│' => '|',
        '┌' | '┐' | '└' | '┘' | '├' | '┤' => '+',
        '▁' => '_',
        '▂' => '.',
        '▃' => ':',
        '▄' => '-',
        '▅' => '=',
        '▆' => '+',
        '▇' => '*',
        '█' => '#',
        '·' => '.',
        '→' | '≥' | '▶' => '>',
        '←' => '<',
        '↑' => '^',
        '↓' => 'v',
        '…' => '~',
        '×' => 'x',
        'µ' => 'u',
        '–' => '-',
        _ => '?',
    }
}
