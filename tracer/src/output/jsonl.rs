//! JSON lines.

use super::{Row, text::Text};

pub(super) fn write(record: &impl Row, to: &mut Text) {
    record.json(to);
    to.push("\n");
}
