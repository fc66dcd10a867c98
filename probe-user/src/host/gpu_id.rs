//! Identity of a GPU: NVIDIA's UUID, or the address on the PCI bus.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An address on the PCI bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pci {
    pub domain: u16,
    pub bus: u8,
    pub device: u8,
    pub function: u8,
}

impl FromStr for Pci {
    type Err = ();

    /// Parses an address as the kernel writes it: `0000:00:02.0`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (slot, function) = text.split_once('.').ok_or(())?;
        let mut parts = slot.split(':');
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

/// Identity of a GPU, stable across restarts of driver and probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GpuId {
    /// NVIDIA's UUID.
    Nvidia(u128),
    /// Integrated in the package of the processor, whose energy includes it.
    Integrated(Pci),
    /// Any other GPU that a driver of the kernel reads.
    Card(Pci),
}

impl fmt::Display for GpuId {
    /// Value of the label `gpu`: `GPU-c1a5…` as in nvidia-smi, or the address on the bus.
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
        let invalid = || format!("{:?} names no GPU", text.chars().take(64).collect::<String>());
        if let Some(uuid) = text.strip_prefix("GPU-") {
            let hex: String = uuid.chars().filter(|char| *char != '-').collect();
            let valid = hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
            return valid.then(|| u128::from_str_radix(&hex, 16).ok()).flatten().map(Self::Nvidia).ok_or_else(invalid);
        }
        let (kind, address): (fn(Pci) -> Self, &str) = match text.strip_prefix("integrated-") {
            Some(address) => (Self::Integrated, address),
            None => (Self::Card, text),
        };
        address.parse().map(kind).map_err(|()| invalid())
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
    fn invalid_ids_are_rejected() {
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
        fn ids_round_trip(uuid in any::<u128>(), domain in any::<u16>(), bus in any::<u8>(), device in 0u8..32, function in 0u8..8) {
            let pci = Pci { domain, bus, device, function };
            for id in [GpuId::Nvidia(uuid), GpuId::Integrated(pci), GpuId::Card(pci)] {
                prop_assert_eq!(id.to_string().parse(), Ok(id));
            }
        }
    }
}
