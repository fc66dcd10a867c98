//! Power of the rails of a Raspberry Pi 5, as its firmware reads them from the power management
//! chip.
//!
//! No driver of the kernel offers them under `/sys/class/hwmon`: the firmware answers the command
//! `pmic_read_adc`, which `vcgencmd` sends as a property message over `/dev/vcio`
//! (drivers/char/broadcom/vcio.c of the Raspberry Pi kernel; vcgencmd.c of raspberrypi/utils). The
//! probe sends the same message and starts no program.
//!
//! The rails are those that the chip makes. What it does not make is in no rail: USB devices, the
//! fan, and the loss of the chip. A reading is a momentary value.

#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use crate::host::availability::{Reason, Unavailable};

const COMMAND: &[u8] = b"pmic_read_adc";
/// `GET_GENCMD_RESULT` of vcgencmd.c.
const TAG: u32 = 0x0003_0080;
/// Bytes for the command and its answer: `MAX_STRING` of vcgencmd.c.
const TEXT: usize = 4096;
/// Words before the text: size of the message, request code, tag, size of the text, length of the
/// request, error.
const HEAD: usize = 6;
/// The head, the text and the tag that ends the message.
const WORDS: usize = HEAD + TEXT / 4 + 1;
/// Answer to a message that was processed (`RPI_FIRMWARE_STATUS_SUCCESS`,
/// include/soc/bcm2835/raspberrypi-firmware.h).
const SUCCESS: u32 = 0x8000_0000;
/// More volts or amperes than a rail of such a board has.
const MAX_VALUE: f64 = 100.0;

/// Asks the firmware.
trait Firmware: Send {
    /// The text of its answer to [`COMMAND`].
    fn ask(&mut self) -> io::Result<String>;
}

/// The rails of the board.
pub(super) struct Rails {
    firmware: Box<dyn Firmware>,
}

impl Rails {
    /// Opens the firmware's device below `dev`, and reads the rails once. Returns the path of the
    /// device too.
    ///
    /// # Errors
    /// `absent` without the device, or with firmware that does not report currents; `denied` or
    /// `broken` when it cannot be used.
    pub(super) fn open(dev: &Path) -> Result<(Self, PathBuf), Unavailable> {
        let path = dev.join("vcio");
        let refused = |reason, error: &io::Error| Unavailable::new(reason, format!("{}: {error}", path.display()));
        let device = File::open(&path).map_err(|error| refused(Reason::of(&error), &error))?;
        let mut this = Self { firmware: Box::new(Device(device)) };
        match this.microwatts() {
            Ok(_) => Ok((this, path)),
            // Boards before the Pi 5 have the device, and another power management chip.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(refused(Reason::Absent, &error)),
            Err(error) => Err(refused(Reason::of(&error), &error)),
        }
    }

    /// Power of all rails in microwatts.
    ///
    /// # Errors
    /// When the firmware does not answer, or not with currents and voltages.
    pub(super) fn microwatts(&mut self) -> io::Result<u64> {
        let answer = self.firmware.ask()?;
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "the firmware reports no currents of rails");
        parse(&answer).ok_or_else(invalid)
    }
}

/// The device of the firmware.
struct Device(File);

impl Firmware for Device {
    fn ask(&mut self) -> io::Result<String> {
        let mut message = message();
        let request = libc::_IOWR::<*mut libc::c_char>(100, 0);
        // SAFETY: the message is an array of as many bytes as its first word says and outlives the
        // call. The driver writes no more than that (vcio.c).
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), request, message.as_mut_ptr()) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        answer(&message)
    }
}

/// The message with the command.
fn message() -> Vec<u32> {
    let mut words = vec![0u32; WORDS];
    // Both sizes are constants of a few kilobytes.
    words[0] = u32::try_from(WORDS * 4).unwrap_or(0);
    words[2] = TAG;
    words[3] = u32::try_from(TEXT).unwrap_or(0);
    for (word, bytes) in words[HEAD..].iter_mut().zip(COMMAND.chunks(4)) {
        let mut four = [0; 4];
        four[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_ne_bytes(four);
    }
    words
}

/// The text of an answered message.
fn answer(message: &[u32]) -> io::Result<String> {
    if message.get(1) != Some(&SUCCESS) {
        return Err(io::Error::other("the firmware did not process the request"));
    }
    let text = message.get(HEAD..HEAD + TEXT / 4).unwrap_or_default();
    let bytes: Vec<u8> = text.iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Sum of volts times amperes of all rails, in microwatts; `None` where a current has no voltage,
/// or nothing has a current. A voltage without a current is an input.
///
/// Lines are `VDD_CORE_A current(7)=6.22421000A` and `VDD_CORE_V volt(15)=0.86173300V`. A rail has
/// one name and two numbers.
fn parse(answer: &str) -> Option<u64> {
    let (mut currents, mut volts) = (BTreeMap::new(), BTreeMap::new());
    for line in answer.lines() {
        let Some((name, reading)) = line.trim().split_once(' ') else { continue };
        let Some((_, value)) = reading.split_once('=') else { continue };
        if let (Some(rail), Some(value)) = (name.strip_suffix("_A"), value.trim().strip_suffix('A')) {
            currents.insert(rail, value);
        } else if let (Some(rail), Some(value)) = (name.strip_suffix("_V"), value.trim().strip_suffix('V')) {
            volts.insert(rail, value);
        }
    }
    let value = |text: &str| text.parse::<f64>().ok().filter(|value| (0.0..MAX_VALUE).contains(value));
    let mut watts = 0.0;
    for (rail, current) in &currents {
        watts += value(current)? * value(volts.get(rail)?)?;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float to int casts saturate")]
    let microwatts = (watts * 1e6).round() as u64;
    (!currents.is_empty()).then_some(microwatts)
}

/// Rails with this text as the answer of the firmware.
#[cfg(test)]
pub(super) fn answering(text: &'static str) -> Rails {
    struct Fixed(&'static str);
    impl Firmware for Fixed {
        fn ask(&mut self) -> io::Result<String> {
            Ok(self.0.to_owned())
        }
    }
    Rails { firmware: Box::new(Fixed(text)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A Pi 5 with four busy cores.
    const BUSY: &str = include_str!("../../../tests/fixtures/raspberry-pi-5/pmic_read_adc");

    #[test]
    fn power_is_that_of_all_rails_with_a_current() {
        // 12 rails; EXT5V and BATT have no current.
        assert_eq!(answering(BUSY).microwatts().unwrap(), 6_512_743);
    }

    #[test]
    fn a_rail_without_a_voltage_makes_the_sum_unknown() {
        let without: Vec<&str> = BUSY.lines().filter(|line| !line.contains("VDD_CORE_V")).collect();
        assert_eq!(parse(&without.join("\n")), None);
        for text in [
            "",
            "error=1 error_msg=\"Command not registered\"",
            "EXT5V_V volt(24)=5.09066000V\n",
            "A_A current(0)=nanA\nA_V volt(1)=1V\n",
            "A_A current(0)=-1A\nA_V volt(1)=1V\n",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_message_has_the_layout_of_vcgencmd() {
        let mut words = message();
        assert_eq!((words.len(), words[0], words[2], words[3]), (1031, 4124, 0x30080, 4096));
        assert_eq!(words[HEAD].to_ne_bytes(), *b"pmic");
        assert!(answer(&words).is_err(), "a request that was not answered");
        words[1] = SUCCESS;
        assert_eq!(answer(&words).unwrap(), "pmic_read_adc");
    }

    #[test]
    fn a_machine_without_the_device_is_absent() {
        let dir = tempfile::tempdir().unwrap();
        let absent = |dir: &Path| Rails::open(dir).err().unwrap().reason;
        assert_eq!(absent(dir.path()), Reason::Absent);
        // A file that is no device of the firmware.
        std::fs::write(dir.path().join("vcio"), "").unwrap();
        assert_eq!(absent(dir.path()), Reason::Broken);
    }

    proptest! {
        #[test]
        fn arbitrary_answers_do_not_panic(text in "([A-Z]{1,3}_[AV] (current|volt)\\([0-9]\\)=[0-9.a-z-]{0,9}[AV]\n|.{0,30}\n){0,20}") {
            let _ = parse(&text);
        }
    }
}
