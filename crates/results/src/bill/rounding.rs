//! Divisions that lose nothing: rounded rows sum to the rounded total.

use rust_decimal::Decimal;

/// Splits a whole by weights; the parts sum to it. Largest remainder, the first of equal ones.
/// Without any weight the last part has all of it.
#[must_use]
pub fn split(whole: u64, weights: &[u64]) -> Vec<u64> {
    let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let mut parts = vec![0; weights.len()];
    if sum == 0 {
        if let Some(last) = parts.last_mut() {
            *last = whole;
        }
        return parts;
    }
    let mut remainders: Vec<(u128, usize)> = Vec::with_capacity(weights.len());
    let mut left = whole;
    for (at, (weight, part)) in weights.iter().zip(&mut parts).enumerate() {
        let product = u128::from(whole) * u128::from(*weight);
        // At most `whole`.
        *part = u64::try_from(product / sum).unwrap_or(whole);
        left -= *part;
        remainders.push((product % sum, at));
    }
    remainders.sort_by(|(one, at), (other, behind)| other.cmp(one).then(at.cmp(behind)));
    for (_, at) in remainders {
        if left == 0 {
            break;
        }
        parts[at] += 1;
        left -= 1;
    }
    parts
}

/// Rounds values to `digits` after the point so that they sum to their rounded sum, which is the
/// second value. Absent if a value is too large.
#[must_use]
pub fn rounded(values: &[Decimal], digits: u32) -> Option<(Vec<Decimal>, Decimal)> {
    let scale = Decimal::from(10u64.checked_pow(digits)?);
    let sum = values.iter().try_fold(Decimal::ZERO, |sum, value| sum.checked_add(*value))?;
    let scaled: Vec<Decimal> = values.iter().map(|value| value.checked_mul(scale)).collect::<Option<_>>()?;
    let total = sum.checked_mul(scale)?.round();
    let mut floors: Vec<Decimal> = scaled.iter().map(Decimal::floor).collect();
    let mut left = floors.iter().try_fold(total, |left, floor| left.checked_sub(*floor))?;
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by_key(|at| (std::cmp::Reverse(scaled[*at] - floors[*at]), *at));
    for at in order {
        if left <= Decimal::ZERO {
            break;
        }
        floors[at] += Decimal::ONE;
        left -= Decimal::ONE;
    }
    let unscaled = |value: Decimal| {
        let mut value = value.checked_div(scale)?;
        value.rescale(digits);
        Some(value)
    };
    Some((floors.into_iter().map(unscaled).collect::<Option<_>>()?, unscaled(total)?))
}

/// Microjoules as joules, exactly.
#[must_use]
pub fn joules(microjoules: i128) -> Option<Decimal> {
    Decimal::try_from_i128_with_scale(microjoules, 6).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rounded_rows_sum_to_the_rounded_total() {
        let thirds = [Decimal::ONE / Decimal::from(3); 3];
        let (rows, total) = rounded(&thirds, 2).unwrap();
        assert_eq!(rows.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.34", "0.33", "0.33"]);
        assert_eq!(total.to_string(), "1.00");
        assert_eq!(joules(1_000_001).unwrap().to_string(), "1.000001");
        assert_eq!(rounded(&[], 2).unwrap().1.to_string(), "0.00");
    }

    proptest! {
        #[test]
        fn parts_sum_to_the_whole(whole in any::<u64>(), weights in prop::collection::vec(any::<u64>(), 1..20)) {
            let parts = split(whole, &weights);
            prop_assert_eq!(parts.iter().map(|part| u128::from(*part)).sum::<u128>(), u128::from(whole));
        }

        #[test]
        fn rounding_keeps_the_sum(values in prop::collection::vec(-1_000_000_000i64..1_000_000_000, 0..40), digits in 0u32..5) {
            let values: Vec<Decimal> = values.into_iter().map(|value| Decimal::new(value, 7)).collect();
            let (rows, total) = rounded(&values, digits).unwrap();
            prop_assert_eq!(rows.iter().sum::<Decimal>(), total);
            for (row, value) in rows.iter().zip(&values) {
                prop_assert!((row - value).abs() <= Decimal::new(1, digits), "{} {}", row, value);
            }
        }
    }
}
