//! Checks of queries and dashboards without a database: the applicable rules of Grafana's dashboard
//! linter, and that every metric name, label and metric type exists on our pages.

use std::collections::{BTreeMap, BTreeSet};

use promql_parser::parser::{self, Expr, LabelModifier, token};
use serde_json::Value;

use super::families::Family;
use crate::dashboards::{Dashboard, Panel};

/// Units of Grafana that we use (`@grafana/data`, valueFormats/categories.ts).
const UNITS: [&str; 27] = [
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
    "dateTimeFromNow",
    "currencyCHF",
    "currencyCZK",
    "currencyDKK",
    "currencyEUR",
    "currencyGBP",
    "currencyJPY",
    "currencyNOK",
    "currencyPLN",
    "currencySEK",
    "currencyUSD",
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
    for event in dashboard.annotations() {
        faults.extend(
            check_query(event.expr, known, false)
                .into_iter()
                .map(|message| format!("{}, events {}: {message}", dashboard.uid, event.name)),
        );
    }
    for (panel, target, expr) in dashboard.queries() {
        let mut fault = |message: String| faults.push(format!("{}, {}: {message}", dashboard.uid, panel.title));
        for message in check_query(&expr, known, false) {
            fault(message);
        }
        let query = parse(&expr).unwrap_or_default();
        for message in check_display(panel, &query, known) {
            fault(message);
        }
        // A table has a column for each label.
        let missing =
            query.grouping.iter().find(|label| **label != "le" && !target.legend.contains(&format!("{{{{{label}}}}}")));
        if let Some(label) = missing
            && !panel.has_columns()
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

/// Faults in how a panel shows a query.
fn check_display(panel: &Panel, query: &Query, known: &BTreeMap<String, Family>) -> Vec<String> {
    let mut faults = Vec::new();
    for selector in &query.selectors {
        let family = known.get(&selector.name);
        // What backfill writes is on no port, and has a time of its own.
        let is_result = family.is_some_and(|family| {
            let labels = family.labels.iter().flatten();
            !family.port.is_empty() && labels.filter(|label| ["scenario", "run"].contains(&label.as_str())).count() == 2
        });
        if is_result && panel.is_over_time() {
            faults.push(format!(
                "{} is a result of a run, which does not change: use a table, bars or an XY chart",
                selector.name
            ));
        }
        let is_uncertainty = selector.name == "wattcast_energy_uncertainty_ratio";
        if is_uncertainty && !selector.text.contains("window=\"60s\"") {
            faults.push("the uncertainty of a tick is noise: select window=\"60s\"".to_owned());
        }
        if is_uncertainty && !query.selectors.iter().any(|other| other.name == "wattcast_idle_state_info") {
            faults.push("the uncertainty says nothing while the idle power is unknown: hide it then".to_owned());
        }
    }
    // An amount per pixel is too small for the unit of a currency.
    if query.grouping.contains("currency") && !panel.has_columns() && !panel.is_money() && panel.unit() == "none" {
        faults.push("an amount of money without the unit of its currency".to_owned());
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
    if variables.last().is_some_and(|variable| variable["name"] != "job") {
        faults.push("the variable job must be the last".to_owned());
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
        let overrides = panel["fieldConfig"]["overrides"].as_array().into_iter().flatten();
        let properties = overrides.flat_map(|own| own["properties"].as_array().into_iter().flatten());
        units.extend(properties.filter(|property| property["id"] == "unit").map(|property| &property["value"]));
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

/// Faults between dashboards: addresses that two have, and links to panels or variables that do not
/// exist.
pub(super) fn across(dashboards: &[Dashboard]) -> Vec<String> {
    let all: BTreeMap<&str, Value> = dashboards.iter().map(|board| (board.uid, board.json())).collect();
    let mut faults = Vec::new();
    if all.len() != dashboards.len() {
        faults.push("two dashboards have the same UID".to_owned());
    }
    for (uid, json) in &all {
        for url in urls(json) {
            let path = url.trim_start_matches("/d/");
            let (to, query) = path.split_once('?').unwrap_or((path, ""));
            let Some(target) = all.get(to) else {
                faults.push(format!("{uid}: a link to the dashboard {to}, which does not exist"));
                continue;
            };
            let variables = target["templating"]["list"].as_array().into_iter().flatten();
            let names: BTreeSet<&str> = variables.filter_map(|variable| variable["name"].as_str()).collect();
            let set = query.split('&').filter_map(|part| part.strip_prefix("var-")?.split_once('='));
            faults.extend(
                set.filter(|(name, _)| !names.contains(name))
                    .map(|(name, _)| format!("{uid}: a link sets the variable {name}, which {to} does not have")),
            );
            if !query.is_empty() && !query.contains("${__url_time_range}") {
                faults.push(format!("{uid}: a link to {to} does not keep the time range"));
            }
        }
    }
    faults
}

/// All addresses of other dashboards in a dashboard.
fn urls(json: &Value) -> Vec<&str> {
    match json {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| match value.as_str() {
                Some(url) if key == "url" && !url.is_empty() => vec![url],
                _ => urls(value),
            })
            .collect(),
        Value::Array(all) => all.iter().flat_map(urls).collect(),
        _ => Vec::new(),
    }
}

/// Panels of which `cargo xtask pictures` would draw an empty frame, by the source text of its list
/// of panel types and of its transformations. Grafana's package has those that are not its own.
pub(super) fn not_drawn(json: &Value, kinds: &str, steps: &str) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut faults = Vec::new();
    for panel in json["panels"].as_array().into_iter().flatten() {
        let (place, kind) = (format!("{}, {}", text(&json["uid"]), text(&panel["title"])), text(&panel["type"]));
        if kind != "row" && !kinds.contains(&format!("\n  {kind}")) {
            faults.push(format!("{place}: the pictures cannot show {kind}"));
        }
        for step in panel["transformations"].as_array().into_iter().flatten() {
            let id = text(&step["id"]);
            if !["merge", "organize"].contains(&id.as_str()) && !steps.contains(&format!("'{id}'")) {
                faults.push(format!("{place}: the pictures cannot compute {id}"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboards::panel;

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
        let variables = serde_json::json!([{ "name": "datasource" }, { "name": "instance" }, { "name": "job" }]);
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
        let mut wrong = panel(0, "a");
        wrong["fieldConfig"]["overrides"] = serde_json::json!([
            { "matcher": {}, "properties": [{ "id": "links", "value": [] }, { "id": "unit", "value": "currencyXYZ" }] }
        ]);
        assert_eq!(layout(&dashboard(vec![wrong])), ["a: unknown unit \"currencyXYZ\""]);
        let mut wrong = dashboard(Vec::new());
        wrong["templating"]["list"] =
            serde_json::json!([{ "name": "datasource" }, { "name": "job" }, { "name": "instance" }]);
        assert_eq!(layout(&wrong), ["the variable job must be the last"]);
    }

    #[test]
    fn panels_that_mislead_are_reported() {
        let mut all = known();
        let mut family = |name: &str, labels: &[&str]| {
            let labels = Some(labels.iter().map(|label| (*label).to_owned()).collect());
            all.insert(name.to_owned(), Family { is_counter: false, labels, port: "9502".to_owned() });
        };
        family("result", &["scenario", "run"]);
        family("amount", &["currency"]);
        family("wattcast_energy_uncertainty_ratio", &["container", "window"]);
        family("wattcast_idle_state_info", &["package", "state"]);
        let faults = |panel: Panel, expr: &str| check_display(&panel, &parse(expr).unwrap(), &all).join("; ");
        let lines = || panel::time_series("t", "none", "d");
        let (bars, money) = (|| panel::bars("t", "none", "d"), || panel::bars("t", "none", "d").money());
        let uncertainty = "max(wattcast_energy_uncertainty_ratio{window=\"60s\"}";
        for (panel, expr, words) in [
            (lines(), "max by (run) (result)".to_owned(), "use a table, bars or an XY chart"),
            (bars(), "max by (run) (result)".to_owned(), ""),
            (lines(), "g".to_owned(), ""),
            (bars(), format!("{uncertainty})"), "hide it then"),
            (bars(), format!("{uncertainty} and on (instance) wattcast_idle_state_info)"), ""),
            (
                bars(),
                "wattcast_energy_uncertainty_ratio and on (instance) wattcast_idle_state_info".to_owned(),
                "select window",
            ),
            (bars(), "max by (currency) (amount)".to_owned(), "without the unit of its currency"),
            (money(), "max by (currency) (amount)".to_owned(), ""),
        ] {
            let found = faults(panel, &expr);
            assert!(if words.is_empty() { found.is_empty() } else { found.contains(words) }, "{expr}: {found}");
        }
    }

    #[test]
    fn links_lead_to_variables_that_exist() {
        assert_eq!(across(&crate::dashboards::all()), Vec::<String>::new());
        let url = "/d/b?${datasource:queryparam}&var-x=1&${__url_time_range}";
        let json = serde_json::json!({ "links": [{ "url": "" }, { "a": [{ "url": url }] }], "title": "url" });
        assert_eq!(urls(&json), [url]);
    }

    #[test]
    fn panels_that_the_pictures_lack_are_reported() {
        let json = serde_json::json!({ "uid": "u", "panels": [
            { "type": "row", "title": "r" },
            { "type": "stat", "title": "s", "transformations": [{ "id": "merge" }, { "id": "reduce" }] },
            { "type": "piechart", "title": "p" },
        ] });
        let faults = not_drawn(&json, "{\n  stat,\n  bargauge: bars,\n}", "id: 'partitionByValues'");
        assert_eq!(faults, ["u, s: the pictures cannot compute reduce", "u, p: the pictures cannot show piechart"]);
    }
}
