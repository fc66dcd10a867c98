//! Engine types of GPUs, and their weights for energy attribution.

use std::str::FromStr;

/// An engine type; the label `engine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Engine {
    /// Shaders: NVIDIA's SMs, Intel's render and compute engines, AMD's gfx and compute.
    Sm,
    /// Memory controller, if the driver reports it by process.
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

/// Number of engine types.
pub const ENGINES: usize = 9;

/// Nanoseconds of full use, by [`Engine::index`].
pub type EngineTimes = [u64; ENGINES];

impl Engine {
    /// All types, in the order of [`Engine::index`].
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

    /// Index in [`EngineTimes`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The label value.
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

/// Weight of a second of each engine for energy attribution, in thousandths of a second of all
/// shaders.
///
/// The weights are assumptions, published as `wattcast_gpu_engine_weight` and configurable: no data
/// sheet gives the power of single engines, which depends on the chip. They matter only when
/// different engines are used at the same time; when all workloads use the same engine, they cancel
/// out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineWeights(pub [u64; ENGINES]);

impl Default for EngineWeights {
    fn default() -> Self {
        Self([1000, 500, 300, 300, 100, 100, 300, 100, 100])
    }
}

impl EngineWeights {
    /// The weighted sum of engine times: thousandths of nanoseconds of all shaders.
    #[must_use]
    pub fn weigh(&self, times: &EngineTimes) -> u64 {
        self.0.iter().zip(times).fold(0, |sum: u64, (weight, ns)| sum.saturating_add(weight.saturating_mul(*ns)))
    }
}

/// Parses `encoder=0.4,decoder=0.2`; engines that are not named keep their default weight.
impl FromStr for EngineWeights {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut this = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, weight) = part.split_once('=').ok_or("expected ENGINE=WEIGHT, for example encoder=0.4")?;
            let engine = Engine::ALL.into_iter().find(|engine| engine.as_str() == name).ok_or_else(|| {
                let names = Engine::ALL.map(Engine::as_str).join(", ");
                format!("unknown engine {name:?}; known engines: {names}")
            })?;
            let weight: f64 = weight.parse().map_err(|_| format!("{weight:?} is not a number"))?;
            if !(0.0..=10.0).contains(&weight) {
                return Err(format!("weight {weight} is out of range; it must be 0 to 10 times that of the shaders"));
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 10000")]
            let milli = (weight * 1000.0).round() as u64;
            this.0[engine.index()] = milli;
        }
        if this.0.iter().all(|milli| *milli == 0) {
            return Err("all weights are 0; at least one must be greater to attribute energy".to_owned());
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_weights_and_keeps_defaults_of_others() {
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
    fn all_engines_are_in_order_of_their_index() {
        assert!(Engine::ALL.iter().enumerate().all(|(at, engine)| engine.index() == at));
    }
}
