//! Budgets as bars: what is spent of each this month, and whether it will last.

use cli::number::short;
use http::index_page::escape;
use results::cost::{
    budget::{BudgetStatus, Spending},
    money::float,
};

use super::frame::{Tone, note};

/// Part of a budget from which its bar is yellow.
const NEARLY_SPENT: f64 = 0.8;

/// All budgets; empty without any.
#[must_use]
pub fn body(budgets: &[BudgetStatus]) -> String {
    if budgets.is_empty() {
        return String::new();
    }
    let cards: String = budgets.iter().map(card).collect();
    format!("<h2>Budgets of this month</h2><div class=\"cards\">{cards}</div>")
}

/// How a budget is to be seen, and a word for it.
#[must_use]
pub fn state(budget: &BudgetStatus) -> (Tone, &'static str) {
    let Ok(spending) = &budget.spending else { return (Tone::Bad, "not tracked") };
    let amount = float(budget.amount);
    let [low, middle, _] = spending.forecast;
    if spending.spent > amount {
        (Tone::Bad, "overspent")
    } else if low.is_some_and(|low| low > amount) {
        (Tone::Bad, "will be overspent")
    } else if middle.is_some_and(|middle| middle > amount) || spending.spent > NEARLY_SPENT * amount {
        (Tone::Warn, "may be overspent")
    } else {
        (Tone::Ok, "within the budget")
    }
}

fn card(budget: &BudgetStatus) -> String {
    let (tone, word) = state(budget);
    let mut out = format!("<div class=\"card\"><h3>{} {}</h3>", escape(&budget.name), tone.badge(word));
    match &budget.spending {
        Ok(spending) => out += &bar(budget, spending),
        Err((_, why)) => out += &note(why),
    }
    out + "</div>"
}

fn bar(budget: &BudgetStatus, spending: &Spending) -> String {
    let (name, currency, amount) = (escape(&budget.name), escape(&budget.currency), float(budget.amount));
    let part = if amount > 0.0 { spending.spent / amount } else { 1.0 };
    // The bar is as wide as the budget, or as the spending if that is more.
    let whole = amount.max(spending.spent).max(f64::MIN_POSITIVE);
    let width = |value: f64| (value / whole * 100.0).clamp(0.0, 100.0);
    let class = state(budget).0.class();
    let mut out = format!(
        "<svg class=\"plot\" viewBox=\"0 0 100 4\" width=\"100%\" role=\"img\" aria-label=\"{name}: {0:.0} % spent\">\
         <rect class=\"{class}\" width=\"{1:.2}\" height=\"4\"/>\
         <rect class=\"grid\" width=\"{2:.2}\" height=\"4\" stroke-width=\"0.4\"/></svg>\
         <p>{3} of {4} {currency} spent ({0:.0} %)</p>",
        part * 100.0,
        width(spending.spent),
        width(amount),
        short(spending.spent),
        short(amount)
    );
    let mut more: Vec<String> = Vec::new();
    if let [low, Some(middle), high] = spending.forecast {
        let range = low
            .zip(high)
            .map_or_else(String::new, |(low, high)| format!(" (90 % interval {} to {})", short(low), short(high)));
        more.push(format!("forecast for the end of the month {}{range} {}", short(middle), budget.currency));
    }
    more.extend(spending.burn.iter().map(|(window, ratio)| format!("burn rate {window} {}", short(*ratio))));
    if spending.unknown_hours > 0 {
        more.push(format!("{} hours without data are not included", spending.unknown_hours));
    }
    if !more.is_empty() {
        out += &note(&more.join("; "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(spent: f64, forecast: [Option<f64>; 3]) -> BudgetStatus {
        BudgetStatus {
            name: "<script>".into(),
            currency: "EUR".into(),
            amount: rust_decimal::Decimal::from(100),
            spending: Ok(Spending { spent, unknown_hours: 2, burn: vec![("1h", 1.5)], forecast, error: None }),
        }
    }

    #[test]
    fn the_state_follows_spending_and_forecast() {
        for (spent, forecast, expected) in [
            (10.0, [Some(40.0), Some(50.0), Some(60.0)], Tone::Ok),
            (10.0, [None; 3], Tone::Ok),
            (90.0, [None; 3], Tone::Warn),
            (10.0, [Some(80.0), Some(110.0), Some(130.0)], Tone::Warn),
            (10.0, [Some(105.0), Some(110.0), Some(130.0)], Tone::Bad),
            (101.0, [None; 3], Tone::Bad),
        ] {
            assert_eq!(state(&budget(spent, forecast)).0, expected, "{spent} {forecast:?}");
        }
    }

    #[test]
    fn bars_show_the_part_that_is_spent() {
        let page = body(&[budget(25.0, [Some(80.0), Some(90.0), Some(99.0)])]);
        assert!(
            page.contains("<rect class=\"ok\" width=\"25.00\"") && page.contains("25 of 100 EUR spent (25 %)"),
            "{page}"
        );
        assert!(page.contains("90 % interval 80 to 99") && page.contains("2 hours without data"), "{page}");
        assert!(!page.contains("<script>") && !page.contains("style="), "{page}");
        assert!(body(&[budget(250.0, [None; 3])]).contains("width=\"100.00\""));
        assert_eq!(body(&[]), "");
    }

    #[test]
    fn a_budget_that_is_not_tracked_says_why() {
        let spending = Err(("no_database".to_owned(), "no <database>".to_owned()));
        let page = body(&[BudgetStatus { spending, ..budget(0.0, [None; 3]) }]);
        assert!(page.contains("badge bad\">not tracked") && page.contains("no &lt;database&gt;"), "{page}");
    }
}
