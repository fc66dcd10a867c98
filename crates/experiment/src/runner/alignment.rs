//! Finds a piece of a live stream in its source, by the content of the frames.
//!
//! Timestamps cannot tell: server, encoder and player each start their own clock, and the source
//! repeats. Each frame is reduced to a small grey picture, its signature. An offset counts only if
//! it is beyond doubt, because a shift by one frame costs 20 VMAF points: nearly every frame must
//! be closer to its source frame than at any other offset.

/// Width and height of a signature in pixels.
pub(super) const SIDE: usize = 32;
/// Size of a signature: a byte per pixel.
pub(super) const SIGNATURE: usize = SIDE * SIDE;

/// Share of the frames that must prefer the offset to each other one, in each third of a piece: a
/// frame that is missing near an end shifts few of them. Where the source does not move, frames
/// prefer any offset with equal chance; where it does, all prefer theirs.
const AGREEMENT: (usize, usize) = (9, 10);

/// Why a piece has no offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAligned {
    /// The source is not longer than the piece, so that there is no other offset.
    #[error("the source has no more frames than a piece")]
    ShortSource,
    /// The piece begins in one repetition of the source and ends in the next, between which a frame
    /// may be missing.
    #[error("it continues over the end of the source")]
    OverTheEnd,
    /// The best offset is hardly better than a usual one.
    #[error("no frames in common with the source")]
    NothingInCommon,
    /// The source does not move enough, or a frame is missing or repeated.
    #[error("its frames match several places of the source")]
    Ambiguous,
}

/// Index of the source's frame with which a piece begins. Both are signatures of successive frames;
/// the stream repeats the source.
///
/// All offsets in the repeated source are compared. Without those over its end, a piece that begins
/// one frame too late to fit would be found one frame too early, with all frames in agreement.
///
/// # Errors
/// When there is none beyond doubt, or the piece is over the end of the source.
pub(super) fn find(source: &[u8], piece: &[u8]) -> Result<usize, NotAligned> {
    let [source, piece]: [Vec<&[u8]>; 2] = [source, piece].map(|all| all.chunks_exact(SIGNATURE).collect());
    if piece.is_empty() || source.len() <= piece.len() {
        return Err(NotAligned::ShortSource);
    }
    // For each offset the distance of each frame of the piece.
    let repeated = [&source[..], &source[..piece.len() - 1]].concat();
    let distances: Vec<Vec<u64>> = repeated
        .windows(piece.len())
        .map(|frames| frames.iter().zip(&piece).map(|(a, b)| distance(a, b)).collect())
        .collect();
    let sums: Vec<u64> = distances.iter().map(|frames| frames.iter().sum()).collect();
    let best = (0..sums.len()).min_by_key(|at| sums[*at]).ok_or(NotAligned::ShortSource)?;
    let mut sorted = sums.clone();
    sorted.sort_unstable();
    if sums[best].saturating_mul(2) > sorted[sorted.len() / 2] {
        return Err(NotAligned::NothingInCommon);
    }
    let third = piece.len().div_ceil(3);
    let is_beaten = |other: &[u64]| {
        distances[best].chunks(third).zip(other.chunks(third)).all(|(own, other)| {
            let closer = own.iter().zip(other).filter(|(own, other)| own < other).count();
            closer * AGREEMENT.1 >= own.len() * AGREEMENT.0
        })
    };
    let mut others = distances.iter().enumerate().filter(|(at, _)| *at != best);
    if !others.all(|(_, other)| is_beaten(other)) {
        Err(NotAligned::Ambiguous)
    } else if best + piece.len() > source.len() {
        Err(NotAligned::OverTheEnd)
    } else {
        Ok(best)
    }
}

/// Sum of the squared differences of two signatures.
fn distance(a: &[u8], b: &[u8]) -> u64 {
    let squares = a.iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(*b)).pow(2));
    u64::from(squares.sum::<u32>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signatures of frames with a bright bar, which moves by half a pixel per frame in `moving`
    /// ones, and with noise of up to `noise` levels.
    fn frames(count: usize, moving: bool, noise: u8, seed: u64) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut pixel = |frame: usize, at: usize| {
            let (x, place) = (at % SIDE, if moving { frame } else { 0 });
            let level = [(place / 2) % SIDE, (place.div_ceil(2)) % SIDE].iter().filter(|bar| **bar == x).count();
            [40, 120, 200][level] + random.u8(0..=noise)
        };
        (0..count).flat_map(|frame| (0..SIGNATURE).map(|at| pixel(frame, at)).collect::<Vec<_>>()).collect()
    }

    fn part(all: &[u8], from: usize, to: usize) -> &[u8] {
        &all[from * SIGNATURE..to * SIGNATURE]
    }

    #[test]
    fn noisy_piece_is_found_at_its_frame() {
        let (source, noisy) = (frames(60, true, 0, 1), frames(60, true, 20, 2));
        for from in [0, 1, 17, 44] {
            assert_eq!(find(&source, part(&noisy, from, from + 16)), Ok(from));
        }
    }

    #[test]
    fn piece_over_the_end_of_the_source_is_refused() {
        let source = frames(60, true, 0, 1);
        // Without the last frame's own offset the whole piece would match one frame earlier.
        for over in [1, 2, 8, 15] {
            let wrapped = [part(&source, 44 + over, 60), part(&source, 0, over)].concat();
            assert_eq!(find(&source, &wrapped), Err(NotAligned::OverTheEnd), "{over} frames");
        }
    }

    #[test]
    fn piece_with_a_missing_frame_is_refused() {
        let source = frames(60, true, 0, 1);
        for missing in [1, 4, 8, 13, 15] {
            let piece = [part(&source, 20, 20 + missing), part(&source, 21 + missing, 37)].concat();
            assert_eq!(find(&source, &piece), Err(NotAligned::Ambiguous), "frame {missing}");
        }
    }

    #[test]
    fn source_without_motion_has_no_offset() {
        let (source, noisy) = (frames(60, false, 4, 1), frames(60, false, 20, 2));
        assert!(find(&source, part(&noisy, 10, 26)).is_err());
    }

    #[test]
    fn foreign_piece_has_nothing_in_common() {
        let source = frames(60, true, 0, 1);
        let foreign: Vec<u8> = source.iter().map(|level| 255 - level).collect();
        assert_eq!(find(&source, part(&foreign, 10, 26)), Err(NotAligned::NothingInCommon));
        assert_eq!(find(part(&source, 0, 16), part(&source, 0, 16)), Err(NotAligned::ShortSource));
    }
}
