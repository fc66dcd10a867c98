//! Checks of queries and dashboards without a database: the applicable rules of Grafana's dashboard
//! linter, and that every metric name, label and metric type exists on our pages.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::parser::{self, Expr, LabelModifier, token};
use serde_json::Value;

use super::families::Family;
use crate::dashboards::Dashboard;

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
/// Functions that apply to counters only.
const COUNTER_FUNCTIONS: [&str; 3] = ["rate", "irate", "increase"];

/// A selector in a query.
#[derive(Clone, Debug)]
pub(super) struct Selector {
    pub name: String,
    /// Labels of its matchers.
    pub labels: BTreeSet<String>,
    /// Its text without offset and range.
    pub text: String,
    usage: Usage,
}

/// What a query computes from a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Usage {
    /// The plain values.
    Values,
    /// A rate or an increase.
    Rate,
    /// Only existence: in `count` or `group`, or on the right of `and` and `unless`.
    Presence,
}

/// The selectors and groupings of a query.
#[derive(Debug, Default)]
pub(super) struct Query {
    pub selectors: Vec<Selector>,
    by: BTreeSet<String>,
    /// The labels of its result series, as far as the query determines them.
    grouping: BTreeSet<String>,
}

/// Replaces the variables of a query as Grafana does.
pub(super) fn substitute_variables(expr: &str, rate_interval: &str, range: &str, instance: &str) -> String {
    let instance = if instance.is_empty() { ".+" } else { instance };
    let mut text = expr
        .replace("$__rate_interval", rate_interval)
        .replace("$__range", range)
        .replace("\"$instance\"", &format!("\"{instance}\""));
    for variable in ["job", "container", "stream", "run", "scenario", "currency"] {
        text = text.replace(&format!("\"${variable}\""), "\".+\"");
    }
    text
}

/// Parses a query.
pub(super) fn parse(expr: &str) -> Result<Query, String> {
    let mut query = Query::default();
    let parsed = parser::parse(&substitute_variables(expr, "20s", "120s", ""))?;
    walk(&parsed, Usage::Values, &mut query);
    query.grouping = grouping(&parsed);
    Ok(query)
}

/// The labels of the outermost grouping.
fn grouping(expr: &Expr) -> BTreeSet<String> {
    match expr {
        Expr::Aggregate(sum) => match &sum.modifier {
            Some(LabelModifier::Include(labels)) => labels.labels.iter().cloned().collect(),
            // These select series and keep their labels.
            _ if [token::T_TOPK, token::T_BOTTOMK].contains(&sum.op.id()) => grouping(&sum.expr),
            _ => BTreeSet::new(),
        },
        Expr::Binary(pair) => grouping(&pair.lhs),
        Expr::Paren(inner) => grouping(&inner.expr),
        Expr::Unary(inner) => grouping(&inner.expr),
        Expr::Subquery(inner) => grouping(&inner.expr),
        Expr::Call(call) => call.args.args.last().map(|last| grouping(last)).unwrap_or_default(),
        _ => BTreeSet::new(),
    }
}

fn walk(expr: &Expr, usage: Usage, query: &mut Query) {
    let mut select = |selector: &parser::VectorSelector| {
        let labels = selector.matchers.matchers.iter().map(|matcher| matcher.name.clone()).collect();
        let name = selector.name.clone().unwrap_or_default();
        let bare = parser::VectorSelector { offset: None, at: None, ..selector.clone() };
        query.selectors.push(Selector { name, labels, text: bare.to_string(), usage });
    };
    match expr {
        Expr::VectorSelector(selector) => select(selector),
        Expr::MatrixSelector(matrix) => select(&matrix.vs),
        Expr::Aggregate(sum) => {
            if let Some(LabelModifier::Include(labels)) = &sum.modifier {
                query.by.extend(labels.labels.iter().cloned());
            }
            let counts = [token::T_COUNT, token::T_GROUP].contains(&sum.op.id());
            walk(&sum.expr, if counts { Usage::Presence } else { usage }, query);
        }
        Expr::Binary(pair) => {
            walk(&pair.lhs, usage, query);
            let keeps = [token::T_LAND, token::T_LUNLESS].contains(&pair.op.id());
            walk(&pair.rhs, if keeps { Usage::Presence } else { usage }, query);
        }
        Expr::Call(call) => {
            let usage = if COUNTER_FUNCTIONS.contains(&call.func.name) { Usage::Rate } else { usage };
            for argument in &call.args.args {
                walk(argument, usage, query);
            }
        }
        Expr::Paren(inner) => walk(&inner.expr, usage, query),
        Expr::Unary(inner) => walk(&inner.expr, usage, query),
        Expr::Subquery(inner) => walk(&inner.expr, usage, query),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => {}
    }
}

/// Faults of a query. `raw` is true for rules that record counters as counters.
pub(super) fn check_query(expr: &str, known: &BTreeMap<String, Family>, raw: bool) -> Vec<String> {
    let query = match parse(expr) {
        Ok(query) => query,
        Err(why) => return vec![format!("invalid query: {why}")],
    };
    let mut faults = Vec::new();
    let mut available: Option<BTreeSet<String>> = Some(["job", "instance"].map(str::to_owned).into());
    for selector in &query.selectors {
        let Some(family) = known.get(&selector.name) else {
            faults.push(format!("unknown metric {}", selector.name));
            continue;
        };
        if family.is_counter && selector.usage == Usage::Values && !raw {
            faults.push(format!("{} is a counter: use rate() or increase()", selector.name));
        }
        if !family.is_counter && selector.usage == Usage::Rate {
            faults.push(format!("{} is not a counter: rate() does not apply", selector.name));
        }
        match (&family.labels, &mut available) {
            (Some(labels), Some(available)) => {
                let unknown = selector.labels.iter().find(|label| {
                    !labels.contains(*label) && !["job", "instance", "__name__"].contains(&label.as_str())
                });
                if let Some(label) = unknown {
                    faults.push(format!("{} has no label {label}", selector.name));
                }
                available.extend(labels.iter().cloned());
            }
            _ => available = None,
        }
    }
    if let Some(available) = available
        && let Some(label) = query.by.iter().find(|label| !available.contains(*label))
        && !expr.contains("label_replace")
    {
        faults.push(format!("groups by {label}, which none of its series has"));
    }
    faults
}

/// Faults of a dashboard.
pub(super) fn dashboard(dashboard: &Dashboard, known: &BTreeMap<String, Family>) -> Vec<String> {
    let mut faults = Vec::new();
    let json = dashboard.json();
    let own_port = known.get(dashboard.variables.family).map(|family| family.port.clone()).unwrap_or_default();
    if own_port.is_empty() {
        faults
            .push(format!("{}: its variables use {}, which does not exist", dashboard.uid, dashboard.variables.family));
    }
    for (name, _, family, label) in dashboard.variables.further {
        if known.get(*family).is_none_or(|family| family.labels.as_ref().is_some_and(|labels| !labels.contains(*label)))
        {
            faults.push(format!("{}: variable {name}: {family} has no label {label}", dashboard.uid));
        }
    }
    faults.extend(layout(&json).into_iter().map(|message| format!("{}: {message}", dashboard.uid)));
    for (panel, target, expr) in dashboard.queries() {
        let mut fault = |message: String| faults.push(format!("{}, {}: {message}", dashboard.uid, panel.title));
        for message in check_query(&expr, known, false) {
            fault(message);
        }
        let query = parse(&expr).unwrap_or_default();
        // A table has a column for each label.
        let missing =
            query.grouping.iter().find(|label| **label != "le" && !target.legend.contains(&format!("{{{{{label}}}}}")));
        if let Some(label) = missing
            && !panel.is_table()
        {
            fault(format!("the legend lacks the label {label}, which distinguishes its series"));
        }
        for selector in query.selectors {
            // Series of the dashboard's own program follow its variables.
            let own = known.get(&selector.name).is_some_and(|family| family.port == own_port);
            if own && !["job", "instance"].iter().all(|label| selector.labels.contains(*label)) {
                fault(format!("{} does not select the job and instance of the variables", selector.name));
            }
        }
        for function in COUNTER_FUNCTIONS {
            for window in expr.split(&format!("{function}(")).skip(1).filter_map(|rest| rest.split_once('[')) {
                if !window.1.starts_with("$__rate_interval]") && !window.1.starts_with("$__range]") {
                    fault(format!("{function}() over a fixed window: use $__rate_interval or $__range"));
                }
            }
        }
    }
    faults
}

/// Faults outside the queries: variables, positions, titles, units, data sources.
fn layout(json: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut titles = BTreeSet::new();
    let mut taken: Vec<[u64; 4]> = Vec::new();
    if json["editable"] != false {
        faults.push("a provisioned dashboard must not be editable".to_owned());
    }
    let variables = json["templating"]["list"].as_array().cloned().unwrap_or_default();
    for wanted in ["datasource", "job", "instance"] {
        if !variables.iter().any(|variable| variable["name"] == wanted) {
            faults.push(format!("no variable {wanted}"));
        }
    }
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        if variable["refresh"] != 2 || (variable["includeAll"] == true && variable["allValue"] != ".+") {
            faults.push(format!("variable {}: must refresh on time range change, with .+ for All", variable["name"]));
        }
    }
    for panel in json["panels"].as_array().into_iter().flatten() {
        let title = panel["title"].as_str().unwrap_or_default();
        let mut fault = |message: String| faults.push(format!("{title}: {message}"));
        let position = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap_or_default());
        let [x, y, w, h] = position;
        let is_clear_of = |[ox, oy, ow, oh]: &[u64; 4]| x >= ox + ow || *ox >= x + w || y >= oy + oh || *oy >= y + h;
        if x + w > 24 || !taken.iter().all(is_clear_of) {
            fault("it overlaps another panel, or exceeds the page".to_owned());
        }
        taken.push(position);
        if panel["type"] == "row" {
            continue;
        }
        if title.is_empty() || !titles.insert(title.to_owned()) {
            fault("no unique title".to_owned());
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
            fault(format!("unknown unit {unit}"));
        }
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        if targets.is_empty() {
            fault("no query".to_owned());
        }
        for source in targets.iter().map(|target| &target["datasource"]).chain([&panel["datasource"]]) {
            if source["uid"] != "${datasource}" {
                fault("its data source is not the variable".to_owned());
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeMap<String, Family> {
        let family = |is_counter, labels: &[&str]| Family {
            is_counter,
            labels: Some(labels.iter().map(|label| (*label).to_owned()).collect()),
            port: "9500".to_owned(),
        };
        [("c_total".to_owned(), family(true, &["zone"])), ("g".to_owned(), family(false, &["zone"]))].into()
    }

    #[test]
    fn query_faults_are_reported() {
        let message = |expr: &str| check_query(expr, &known(), false).join("; ");
        for (expr, words) in [
            ("sum by (zone) (rate(c_total{zone=\"a\", job=~\"$job\"}[$__rate_interval]))", ""),
            ("sum(max_over_time(g[$__range]))", ""),
            ("count(c_total) > 1 and on (zone) c_total", ""),
            ("c_total and on (zone) c_total", "is a counter"),
            ("sum(", "invalid query"),
            ("rate(d_total[5m])", "unknown metric d_total"),
            ("c_total", "is a counter"),
            ("rate(g[5m])", "is not a counter"),
            ("g{zoen=\"a\"}", "has no label zoen"),
            ("sum by (zoen) (g)", "groups by zoen"),
        ] {
            assert!(
                if words.is_empty() { message(expr).is_empty() } else { message(expr).contains(words) },
                "{expr}: {}",
                message(expr)
            );
        }
    }

    #[test]
    fn result_labels_are_those_of_the_outermost_grouping() {
        let grouping = |expr: &str| parse(expr).unwrap().grouping.into_iter().collect::<Vec<_>>().join(",");
        for (expr, labels) in [
            ("sum by (a) (max by (a, b) (g))", "a"),
            ("topk(3, sum by (a) (g))", "a"),
            ("count(count by (a) (g))", ""),
            ("sum by (a) (g) / on (a) sum by (a, b) (g)", "a"),
            ("histogram_quantile(0.9, sum by (le, a) (rate(x_bucket[5m])))", "a,le"),
            ("g", ""),
        ] {
            assert_eq!(grouping(expr), labels, "{expr}");
        }
    }

    #[test]
    fn layout_faults_are_reported() {
        let panel = |x: u64, title: &str| {
            serde_json::json!({
                "type": "stat", "title": title, "description": "d", "gridPos": { "x": x, "y": 0, "w": 6, "h": 4 },
                "datasource": { "uid": "${datasource}" }, "targets": [{ "datasource": { "uid": "${datasource}" } }],
                "fieldConfig": { "defaults": { "unit": "watt" }, "overrides": [] },
            })
        };
        let variables = serde_json::json!([{ "name": "datasource" }, { "name": "job" }, { "name": "instance" }]);
        let dashboard = |panels: Vec<Value>| serde_json::json!({ "editable": false, "templating": { "list": variables }, "panels": panels });
        assert_eq!(layout(&dashboard(vec![panel(0, "a"), panel(6, "b")])), Vec::<String>::new());
        assert_eq!(layout(&dashboard(vec![panel(0, "a"), panel(5, "b")])).len(), 1);
        assert_eq!(layout(&dashboard(vec![panel(20, "a")])).len(), 1);
        assert_eq!(layout(&dashboard(vec![panel(0, "a"), panel(6, "a")])).len(), 1);
        let mut wrong = panel(0, "a");
        wrong["fieldConfig"]["defaults"]["unit"] = "wat".into();
        wrong["description"] = "".into();
        wrong["targets"] = serde_json::json!([]);
        assert_eq!(layout(&dashboard(vec![wrong])).len(), 3);
    }
}
