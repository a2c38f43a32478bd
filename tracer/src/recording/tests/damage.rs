//! Files that are cut off or damaged: everything before is given out, and nothing that is wrong.

use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRng, TestRunner},
};

use super::{any_input::heard, *};

/// The same inputs each time, in some batches.
fn file() -> Vec<u8> {
    let config = Config { failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(Default::default()));
    let heard = vec(heard(), 120).new_tree(&mut runner).expect("inputs").current();
    recorded(&heard, 20)
}

#[test]
fn a_file_that_is_cut_gives_what_is_before_the_cut() {
    let file = file();
    let whole = read(&file).expect("a recording");
    let messages = messages(&file);
    assert!(messages.len() > 5 && whole.inputs.len() > 50);
    let mut number = numbers();
    let boundaries = messages.iter().map(|message| message.end);
    let anywhere = (0..200).map(|_| number(file.len() - messages[0].end) + messages[0].end);
    for cut in boundaries.chain(anywhere) {
        let read = read(&file[..cut]).expect("it begins as a recording");
        assert_eq!(read.end.as_ref().ok(), Some(&Ending::Cut), "cut at {cut}: {:?}", read.end);
        let before: Vec<&Input> =
            whole.inputs.iter().filter(|(_, at)| *at <= cut as u64).map(|(input, _)| input).collect();
        assert_eq!(read.inputs(), before, "cut at {cut}");
    }
}

#[test]
fn a_file_that_is_cut_in_its_beginning_is_refused() {
    let file = file();
    for cut in 0..messages(&file)[0].end {
        let error = read(&file[..cut]).err().expect("nothing is known of it");
        assert!(format!("{error:#}").contains("not a recording"), "cut at {cut}: {error:#}");
    }
}

/// Damages a file in several ways, often; what it gives out must be the beginning of what it gave before.
#[test]
fn nothing_wrong_comes_out_of_a_damaged_file() {
    let file = file();
    let whole = read(&file).expect("a recording");
    let whole = whole.inputs();
    let mut number = numbers();
    let (mut refused, mut damaged, mut harmless) = (0, 0, 0);
    for round in 0..3000 {
        let mut bytes = file.clone();
        let at = number(bytes.len());
        match round % 3 {
            0 => bytes[at] ^= 1 << number(8),
            1 => bytes[at..].iter_mut().take(number(8) + 1).for_each(|byte| *byte = number(256) as u8),
            _ => (0..number(20) + 1).for_each(|_| {
                let at = number(bytes.len());
                bytes[at] = number(256) as u8;
            }),
        }
        let Ok(read) = read(&bytes) else {
            refused += 1;
            continue;
        };
        let given = read.inputs();
        let wrong = given.iter().zip(&whole).position(|(given, before)| given != before);
        assert!(
            wrong.is_none(),
            "round {round}: {:?} instead of {:?}",
            wrong.map(|at| given[at]),
            wrong.map(|at| whole[at])
        );
        assert!(given.len() <= whole.len());
        if given.len() < whole.len() { damaged += 1 } else { harmless += 1 }
    }
    assert!(
        refused > 100 && damaged > 1000 && harmless > 10,
        "{refused} refused, {damaged} damaged, {harmless} harmless"
    );
}

#[test]
fn each_flipped_bit_of_a_batchs_content_is_noticed() {
    let file = file();
    let whole = read(&file).expect("a recording");
    let message = messages(&file)[2].clone();
    let head = u32::from_le_bytes(file[message.start + 4..][..4].try_into().expect("four bytes")) as usize;
    let before = whole.inputs.iter().filter(|(_, at)| *at <= message.start as u64).count();
    for at in (message.start + 8 + head..message.end).step_by(7) {
        let mut bytes = file.clone();
        bytes[at] ^= 1 << (at % 8);
        let read = read(&bytes).expect("it begins as a recording");
        let error = read.end.expect_err("it is damaged");
        assert!(format!("{error:#}").contains("damaged"), "{error:#}");
        assert_eq!(read.inputs.len(), before);
    }
}

#[test]
fn a_batch_that_has_lost_its_checksum_is_damaged() {
    let mut file = file();
    let at = file.windows(12).rposition(|bytes| bytes == b"tracer.crc32").expect("the last batch has one");
    file[at] ^= 1;
    let error = read(&file).expect("it begins as a recording").end.expect_err("it is damaged");
    assert!(format!("{error:#}").contains("without its checksum"), "{error:#}");
}

#[test]
fn a_changed_time_of_the_run_is_noticed() {
    let file = file();
    let offset = metadata().clock_offset_ns.to_string();
    let at = file.windows(offset.len()).position(|bytes| bytes == offset.as_bytes()).expect("it is written as text");
    let mut bytes = file.clone();
    bytes[at + 5] ^= 1;
    let error = Reader::new(&bytes[..]).err().expect("it is damaged");
    assert!(format!("{error:#}").contains("checksum"), "{error:#}");
}

proptest! {
    #![proptest_config(Config { cases: 256, failure_persistence: None, ..Config::default() })]

    #[test]
    fn any_bytes_are_refused_or_read(bytes in vec(any::<u8>(), 0..300), marked in any::<bool>()) {
        let mut file = if marked { vec![0xff, 0xff, 0xff, 0xff, 80, 0, 0, 0] } else { Vec::new() };
        file.extend(bytes);
        let _ = read(&file);
    }
}
