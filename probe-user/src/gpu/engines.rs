//! Which parts of a GPU do the work, what a second of each is worth when joules are shared, and which GPU is meant.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A kind of engine; the label `engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    /// Shaders: NVIDIA's SMs, Intel's render and compute engines, AMD's gfx and compute.
    Sm,
    /// The memory controller, as far as the driver tells it by process.
    Memory,
    /// Fixed-function encoders: NVENC, AMD's VCN and VCE.
    Encoder,
    /// Fixed-function decoders: NVDEC, AMD's VCN and UVD.
    Decoder,
    /// JPEG engines.
    Jpeg,
    /// Optical flow.
    Ofa,
    /// Intel's video engines, which encode and decode.
    Video,
    /// Intel's scaling and conversion.
    VideoEnhance,
    /// Copy engines.
    Copy,
}

/// How many kinds there are.
pub const ENGINES: usize = 9;

/// Nanoseconds of full use, by [`Engine::index`].
pub type EngineTimes = [u64; ENGINES];

impl Engine {
    /// Every kind, in the order of [`Engine::index`].
    pub const ALL: [Self; ENGINES] = [
        Self::Sm,
        Self::Memory,
        Self::Encoder,
        Self::Decoder,
        Self::Jpeg,
        Self::Ofa,
        Self::Video,
        Self::VideoEnhance,
        Self::Copy,
    ];

    /// Its place in [`EngineTimes`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sm => "sm",
            Self::Memory => "memory",
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
            Self::Jpeg => "jpeg",
            Self::Ofa => "ofa",
            Self::Video => "video",
            Self::VideoEnhance => "video_enhance",
            Self::Copy => "copy",
        }
    }
}

/// What a second of each engine is worth, in thousandths of a second of all shaders.
///
/// These are assumptions, published as `wattcast_gpu_engine_weight` and open to the user: we know of no data sheet that gives the power of an
/// engine, and it differs by chip. They matter only where different engines are used at one time; where all use the same one, they cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineWeights(pub [u64; ENGINES]);

impl Default for EngineWeights {
    fn default() -> Self {
        Self([1000, 500, 300, 300, 100, 100, 300, 100, 100])
    }
}

impl EngineWeights {
    /// What these times are worth: thousandths of nanoseconds of all shaders.
    #[must_use]
    pub fn weigh(&self, times: &EngineTimes) -> u64 {
        self.0.iter().zip(times).fold(0, |sum: u64, (weight, ns)| sum.saturating_add(weight.saturating_mul(*ns)))
    }
}

/// `encoder=0.4,decoder=0.2`: those that are not named keep their weight.
impl FromStr for EngineWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut this = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, weight) = part.split_once('=').ok_or("write ENGINE=WEIGHT, for example encoder=0.4")?;
            let engine = Engine::ALL.into_iter().find(|engine| engine.as_str() == name).ok_or_else(|| {
                let names = Engine::ALL.map(Engine::as_str).join(", ");
                format!("no engine is called {name:?}; there are {names}")
            })?;
            let weight: f64 = weight.parse().map_err(|_| format!("{weight:?} is not a number"))?;
            if !(0.0..=10.0).contains(&weight) {
                return Err(format!("a weight is 0 to 10 times that of the shaders, not {weight}"));
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 10000")]
            let milli = (weight * 1000.0).round() as u64;
            this.0[engine.index()] = milli;
        }
        if this.0.iter().all(|milli| *milli == 0) {
            return Err("with all weights at 0 no joule could be given to anybody".to_owned());
        }
        Ok(this)
    }
}

/// A place on the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pci {
    /// Segment.
    pub domain: u16,
    /// Bus.
    pub bus: u8,
    /// Slot.
    pub device: u8,
    /// Function.
    pub function: u8,
}

impl FromStr for Pci {
    type Err = ();

    /// `0000:00:02.0`, as the kernel writes it.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (place, function) = text.split_once('.').ok_or(())?;
        let mut parts = place.split(':');
        let mut part = || u16::from_str_radix(parts.next().ok_or(())?, 16).map_err(|_| ());
        let byte = |value: u16| u8::try_from(value).map_err(|_| ());
        let this = Self {
            domain: part()?,
            bus: byte(part()?)?,
            device: byte(part()?)?,
            function: u8::from_str_radix(function, 16).map_err(|_| ())?,
        };
        if parts.next().is_some() || this.device > 31 || this.function > 7 { Err(()) } else { Ok(this) }
    }
}

impl fmt::Display for Pci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// One GPU, the same over restarts of driver and probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GpuId {
    /// NVIDIA's UUID.
    Nvidia(u128),
    /// In the processor's package: its joules are inside the package's.
    Integrated(Pci),
    /// Any other, of which only the use of engines is known.
    Card(Pci),
}

impl fmt::Display for GpuId {
    /// The label's value: `GPU-c1a5…` as nvidia-smi shows it, or the place on the bus.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nvidia(uuid) => {
                let hex = format!("{uuid:032x}");
                write!(f, "GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
            }
            Self::Integrated(pci) => write!(f, "integrated-{pci}"),
            Self::Card(pci) => pci.fmt(f),
        }
    }
}

impl FromStr for GpuId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{:?} names no GPU", text.chars().take(64).collect::<String>());
        if let Some(uuid) = text.strip_prefix("GPU-") {
            let hex: String = uuid.chars().filter(|char| *char != '-').collect();
            let valid = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
            return valid.then(|| u128::from_str_radix(&hex, 16).ok()).flatten().map(Self::Nvidia).ok_or_else(wrong);
        }
        let (kind, place): (fn(Pci) -> Self, &str) = match text.strip_prefix("integrated-") {
            Some(place) => (Self::Integrated, place),
            None => (Self::Card, text),
        };
        place.parse().map(kind).map_err(|()| wrong())
    }
}

impl Serialize for GpuId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GpuId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_are_read_and_those_not_named_stay() {
        let weights: EngineWeights = "encoder=0.45,sm=2".parse().unwrap();
        assert_eq!(weights.0[..4], [2000, 500, 450, 300]);
        for (text, hint) in [
            ("nvenc=1", "encoder"),
            ("encoder", "ENGINE=WEIGHT"),
            ("encoder=x", "not a number"),
            ("encoder=11", "0 to 10"),
            ("sm=0,memory=0,encoder=0,decoder=0,jpeg=0,ofa=0,video=0,video_enhance=0,copy=0", "all weights"),
        ] {
            let error = text.parse::<EngineWeights>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn engines_stand_where_their_index_says() {
        assert!(Engine::ALL.iter().enumerate().all(|(at, engine)| engine.index() == at));
    }

    #[test]
    fn what_is_no_gpu_is_refused() {
        for text in [
            "",
            "GPU-",
            "GPU-12",
            "MIG-123",
            "00:02.0",
            "0000:00:20.0",
            "0000:00:02.8",
            "GPU-+1345678123456781234567812345678",
        ] {
            assert!(text.parse::<GpuId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_gpu_s_name_is_read_back(uuid in any::<u128>(), domain in any::<u16>(), bus in any::<u8>(), device in 0u8..32, function in 0u8..8) {
            let pci = Pci { domain, bus, device, function };
            for id in [GpuId::Nvidia(uuid), GpuId::Integrated(pci), GpuId::Card(pci)] {
                prop_assert_eq!(id.to_string().parse(), Ok(id));
            }
        }
    }
}
