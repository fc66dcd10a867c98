//! What can be said of a query and of a dashboard without a database: the rules of Grafana's own dashboard linter that concern us, and that every name, label
//! and kind of series is one that our pages have.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::parser::{self, Expr, LabelModifier, token};
use serde_json::Value;

use super::{known::Family, put_values};
use crate::dashboards::Board;

/// Units of Grafana that we use (`@grafana/data`, valueFormats/categories.ts).
const UNITS: [&str; 16] = [
    "none",
    "short",
    "sci",
    "watt",
    "joule",
    "percent",
    "percentunit",
    "bytes",
    "Bps",
    "s",
    "ms",
    "hertz",
    "celsius",
    "dB",
    "massg",
    "reqps",
];
/// Functions that make a rate or a sum out of a counter.
const OF_COUNTERS: [&str; 3] = ["rate", "irate", "increase"];

/// A series that a query asks for.
#[derive(Clone, Debug)]
pub(super) struct Selector {
    pub name: String,
    /// Labels by which it chooses.
    pub labels: BTreeSet<String>,
    /// As it stands in the query, without offset and range.
    pub text: String,
    used: Used,
}

/// What a query does with a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Used {
    /// Its values as they are.
    Values,
    /// A rate or an increase of it.
    Rate,
    /// Only that it is there: it is counted, or others are kept by it.
    Presence,
}

/// What a query asks for, and by which labels it groups.
#[derive(Debug, Default)]
pub(super) struct Query {
    pub selectors: Vec<Selector>,
    by: BTreeSet<String>,
    /// The labels that tell its answers apart, where the query says them.
    apart: BTreeSet<String>,
}

/// Reads a query.
///
/// # Errors
/// Why it is none.
pub(super) fn read(expr: &str) -> Result<Query, String> {
    let mut query = Query::default();
    let parsed = parser::parse(&put_values(expr, "20s", "120s", ""))?;
    walk(&parsed, Used::Values, &mut query);
    query.apart = apart(&parsed);
    Ok(query)
}

/// The labels of the outermost grouping.
fn apart(expr: &Expr) -> BTreeSet<String> {
    match expr {
        Expr::Aggregate(sum) => match &sum.modifier {
            Some(LabelModifier::Include(labels)) => labels.labels.iter().cloned().collect(),
            // These choose, and put nothing together.
            _ if [token::T_TOPK, token::T_BOTTOMK].contains(&sum.op.id()) => apart(&sum.expr),
            _ => BTreeSet::new(),
        },
        Expr::Binary(pair) => apart(&pair.lhs),
        Expr::Paren(inner) => apart(&inner.expr),
        Expr::Unary(inner) => apart(&inner.expr),
        Expr::Subquery(inner) => apart(&inner.expr),
        Expr::Call(call) => call.args.args.last().map(|last| apart(last)).unwrap_or_default(),
        _ => BTreeSet::new(),
    }
}

fn walk(expr: &Expr, used: Used, query: &mut Query) {
    let mut select = |selector: &parser::VectorSelector| {
        let labels = selector.matchers.matchers.iter().map(|matcher| matcher.name.clone()).collect();
        let name = selector.name.clone().unwrap_or_default();
        let bare = parser::VectorSelector { offset: None, at: None, ..selector.clone() };
        query.selectors.push(Selector { name, labels, text: bare.to_string(), used });
    };
    match expr {
        Expr::VectorSelector(selector) => select(selector),
        Expr::MatrixSelector(matrix) => select(&matrix.vs),
        Expr::Aggregate(sum) => {
            if let Some(LabelModifier::Include(labels)) = &sum.modifier {
                query.by.extend(labels.labels.iter().cloned());
            }
            let counts = [token::T_COUNT, token::T_GROUP].contains(&sum.op.id());
            walk(&sum.expr, if counts { Used::Presence } else { used }, query);
        }
        Expr::Binary(pair) => {
            walk(&pair.lhs, used, query);
            let keeps = [token::T_LAND, token::T_LUNLESS].contains(&pair.op.id());
            walk(&pair.rhs, if keeps { Used::Presence } else { used }, query);
        }
        Expr::Call(call) => {
            let used = if OF_COUNTERS.contains(&call.func.name) { Used::Rate } else { used };
            for argument in &call.args.args {
                walk(argument, used, query);
            }
        }
        Expr::Paren(inner) => walk(&inner.expr, used, query),
        Expr::Unary(inner) => walk(&inner.expr, used, query),
        Expr::Subquery(inner) => walk(&inner.expr, used, query),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => {}
    }
}

/// What is wrong with a query, beside the series that there are. `raw` are rules that hand counters on as counters.
pub(super) fn query(expr: &str, known: &BTreeMap<String, Family>, raw: bool) -> Vec<String> {
    let query = match read(expr) {
        Ok(query) => query,
        Err(why) => return vec![format!("cannot be read: {why}")],
    };
    let mut faults = Vec::new();
    let mut there: Option<BTreeSet<String>> = Some(["job", "instance"].map(str::to_owned).into());
    for selector in &query.selectors {
        let Some(family) = known.get(&selector.name) else {
            faults.push(format!("nobody has {}", selector.name));
            continue;
        };
        if family.counts && selector.used == Used::Values && !raw {
            faults.push(format!("{} is a counter: its rate or its increase says something", selector.name));
        }
        if !family.counts && selector.used == Used::Rate {
            faults.push(format!("{} is no counter and has no rate", selector.name));
        }
        match (&family.labels, &mut there) {
            (Some(labels), Some(there)) => {
                let strange = selector.labels.iter().find(|label| {
                    !labels.contains(*label) && !["job", "instance", "__name__"].contains(&label.as_str())
                });
                if let Some(label) = strange {
                    faults.push(format!("{} has no label {label}", selector.name));
                }
                there.extend(labels.iter().cloned());
            }
            _ => there = None,
        }
    }
    if let Some(there) = there
        && let Some(label) = query.by.iter().find(|label| !there.contains(*label))
        && !expr.contains("label_replace")
    {
        faults.push(format!("grouped by {label}, which nothing in it has"));
    }
    faults
}

/// What is wrong with a dashboard.
pub(super) fn board(board: &Board, known: &BTreeMap<String, Family>) -> Vec<String> {
    let mut faults = Vec::new();
    let json = board.json();
    let home = known.get(board.home.family).map(|family| family.port.clone()).unwrap_or_default();
    if home.is_empty() {
        faults.push(format!("{}: its variables are made of {}, which nobody has", board.uid, board.home.family));
    }
    for (name, _, family, label) in board.home.more {
        if known.get(*family).is_none_or(|family| family.labels.as_ref().is_some_and(|labels| !labels.contains(*label)))
        {
            faults.push(format!("{}: variable {name}: {family} has no label {label}", board.uid));
        }
    }
    faults.extend(frame(&json).into_iter().map(|what| format!("{}: {what}", board.uid)));
    for (panel, target, expr) in board.queries() {
        let mut fault = |what: String| faults.push(format!("{}, {}: {what}", board.uid, panel.title));
        for what in query(&expr, known, false) {
            fault(what);
        }
        let query = read(&expr).unwrap_or_default();
        // A table shows every label in a column of its own.
        let untold =
            query.apart.iter().find(|label| **label != "le" && !target.legend.contains(&format!("{{{{{label}}}}}")));
        if let Some(label) = untold
            && !panel.is_table()
        {
            fault(format!("the legend does not say the {label} by which its curves differ"));
        }
        for selector in query.selectors {
            // What is this dashboard's own can be chosen in it.
            let own = known.get(&selector.name).is_some_and(|family| family.port == home);
            if own && !["job", "instance"].iter().all(|label| selector.labels.contains(*label)) {
                fault(format!("{} is not of the chosen job and instance", selector.name));
            }
        }
        for function in OF_COUNTERS {
            for window in expr.split(&format!("{function}(")).skip(1).filter_map(|rest| rest.split_once('[')) {
                if !window.1.starts_with("$__rate_interval]") && !window.1.starts_with("$__range]") {
                    fault(format!("{function}() over a fixed window: write $__rate_interval or $__range"));
                }
            }
        }
    }
    faults
}

/// What is wrong with the frame around the queries.
fn frame(json: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut titles = BTreeSet::new();
    let mut taken: Vec<[u64; 4]> = Vec::new();
    if json["editable"] != false {
        faults.push("what is provisioned is not edited in place".to_owned());
    }
    let variables = json["templating"]["list"].as_array().cloned().unwrap_or_default();
    for wanted in ["datasource", "job", "instance"] {
        if !variables.iter().any(|variable| variable["name"] == wanted) {
            faults.push(format!("no variable {wanted}"));
        }
    }
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        if variable["refresh"] != 2 || (variable["includeAll"] == true && variable["allValue"] != ".+") {
            faults.push(format!("variable {}: refreshed with time, and All is .+", variable["name"]));
        }
    }
    for panel in json["panels"].as_array().into_iter().flatten() {
        let title = panel["title"].as_str().unwrap_or_default();
        let mut fault = |what: String| faults.push(format!("{title}: {what}"));
        let place = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap_or_default());
        let [x, y, w, h] = place;
        let apart = |[ox, oy, ow, oh]: &[u64; 4]| x >= ox + ow || *ox >= x + w || y >= oy + oh || *oy >= y + h;
        if x + w > 24 || !taken.iter().all(apart) {
            fault("it lies over another, or beside the page".to_owned());
        }
        taken.push(place);
        if panel["type"] == "row" {
            continue;
        }
        if title.is_empty() || !titles.insert(title.to_owned()) {
            fault("no title of its own".to_owned());
        }
        if panel["description"].as_str().is_none_or(str::is_empty) {
            fault("no description".to_owned());
        }
        let mut units = vec![&panel["fieldConfig"]["defaults"]["unit"]];
        units.extend(
            panel["fieldConfig"]["overrides"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|own| &own["properties"][0]["value"]),
        );
        if let Some(unit) = units.into_iter().find(|unit| !UNITS.iter().any(|known| *unit == known)) {
            fault(format!("{unit} is no unit of Grafana's that we know"));
        }
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        if targets.is_empty() {
            fault("it asks nothing".to_owned());
        }
        for source in targets.iter().map(|target| &target["datasource"]).chain([&panel["datasource"]]) {
            if source["uid"] != "${datasource}" {
                fault("its data source is not the chosen one".to_owned());
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeMap<String, Family> {
        let family = |counts, labels: &[&str]| Family {
            counts,
            labels: Some(labels.iter().map(|label| (*label).to_owned()).collect()),
            port: "9500".to_owned(),
        };
        [("c_total".to_owned(), family(true, &["zone"])), ("g".to_owned(), family(false, &["zone"]))].into()
    }

    #[test]
    fn each_mistake_has_its_words() {
        let said = |expr: &str| query(expr, &known(), false).join("; ");
        for (expr, words) in [
            ("sum by (zone) (rate(c_total{zone=\"a\", job=~\"$job\"}[$__rate_interval]))", ""),
            ("sum(max_over_time(g[$__range]))", ""),
            ("count(c_total) > 1 and on (zone) c_total", ""),
            ("c_total and on (zone) c_total", "is a counter"),
            ("sum(", "cannot be read"),
            ("rate(d_total[5m])", "nobody has d_total"),
            ("c_total", "is a counter"),
            ("rate(g[5m])", "is no counter"),
            ("g{zoen=\"a\"}", "has no label zoen"),
            ("sum by (zoen) (g)", "grouped by zoen"),
        ] {
            assert!(
                if words.is_empty() { said(expr).is_empty() } else { said(expr).contains(words) },
                "{expr}: {}",
                said(expr)
            );
        }
    }

    #[test]
    fn what_tells_answers_apart_is_the_outermost_grouping() {
        let apart = |expr: &str| read(expr).unwrap().apart.into_iter().collect::<Vec<_>>().join(",");
        for (expr, labels) in [
            ("sum by (a) (max by (a, b) (g))", "a"),
            ("topk(3, sum by (a) (g))", "a"),
            ("count(count by (a) (g))", ""),
            ("sum by (a) (g) / on (a) sum by (a, b) (g)", "a"),
            ("histogram_quantile(0.9, sum by (le, a) (rate(x_bucket[5m])))", "a,le"),
            ("g", ""),
        ] {
            assert_eq!(apart(expr), labels, "{expr}");
        }
    }

    #[test]
    fn what_lies_over_another_or_says_nothing_is_found() {
        let panel = |x: u64, title: &str| {
            serde_json::json!({
                "type": "stat", "title": title, "description": "d", "gridPos": { "x": x, "y": 0, "w": 6, "h": 4 },
                "datasource": { "uid": "${datasource}" }, "targets": [{ "datasource": { "uid": "${datasource}" } }],
                "fieldConfig": { "defaults": { "unit": "watt" }, "overrides": [] },
            })
        };
        let variables = serde_json::json!([{ "name": "datasource" }, { "name": "job" }, { "name": "instance" }]);
        let board = |panels: Vec<Value>| serde_json::json!({ "editable": false, "templating": { "list": variables }, "panels": panels });
        assert_eq!(frame(&board(vec![panel(0, "a"), panel(6, "b")])), Vec::<String>::new());
        assert_eq!(frame(&board(vec![panel(0, "a"), panel(5, "b")])).len(), 1);
        assert_eq!(frame(&board(vec![panel(20, "a")])).len(), 1);
        assert_eq!(frame(&board(vec![panel(0, "a"), panel(6, "a")])).len(), 1);
        let mut wrong = panel(0, "a");
        wrong["fieldConfig"]["defaults"]["unit"] = "wat".into();
        wrong["description"] = "".into();
        wrong["targets"] = serde_json::json!([]);
        assert_eq!(frame(&board(vec![wrong])).len(), 3);
    }
}
