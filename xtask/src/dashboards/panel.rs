//! Panels, and their form in Grafana's classic model.
//!
//! A description lists queries and display options; target ids, data sources, links to details and
//! the units of currencies are added here in the same way for all panels. Only the kinds of panel
//! that every Grafana since 8 has are used, and XY charts, which need 11.1; a pie or a gauge shows
//! nothing that a bar does not.

use serde_json::{Map, Value, json};

/// Width of a dashboard in grid columns.
pub(super) const COLUMNS: u32 = 24;
/// Currencies for which Grafana has a unit. An amount in another one is a plain number. The name of
/// each series contains its currency either way, as three currencies share the sign kr.
const CURRENCIES: [&str; 10] = ["CHF", "CZK", "DKK", "EUR", "GBP", "JPY", "NOK", "PLN", "SEK", "USD"];
/// Links from a series to its details: the label, which is also the variable of the dashboard to
/// which the link leads, that dashboard, and the title of the link.
const DETAILS: [(&str, &str, &str); 3] = [
    ("container", "power-attribution", "Power of this container"),
    ("stream", "power-attribution", "Power of this stream"),
    ("run", "results-overview", "Results of this run"),
];
/// Labels in the order of a table's columns, with their headings. Grafana has them by alphabet.
const HEADINGS: [(&str, &str); 17] = [
    ("container", "Container"),
    ("stream", "Stream"),
    ("scenario", "Scenario"),
    ("encoder", "Encoder"),
    ("codec", "Codec"),
    ("preset", "Preset"),
    ("bitrate", "Bitrate"),
    ("output_ladder", "Outputs"),
    ("run", "Run"),
    ("target", "Target"),
    ("state", "State"),
    ("vmaf", "VMAF"),
    ("scope", "Scope"),
    ("source", "Source"),
    ("way", "Method"),
    ("part", "Part"),
    ("unit", "Unit"),
];
/// Heading of the label that names the unit of an amount, which follows the amounts.
const CURRENCY: (&str, &str) = ("currency", "Currency");

/// A threshold: the lowest value and its colour.
pub(super) type Threshold = (Option<f64>, &'static str);

/// A row heading or a panel.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Queries; `$S` stands for the matchers of the selected job and instance.
    pub targets: Vec<Target>,
    pub title: &'static str,
    kind: Kind,
    description: &'static str,
    unit: &'static str,
    pub(super) width: u32,
    pub(super) height: u32,
    min: Option<f64>,
    max: Option<f64>,
    decimals: Option<u32>,
    stacked: bool,
    bars: bool,
    money: bool,
    sort: Option<(&'static str, bool)>,
    thresholds: Vec<Threshold>,
    value_texts: Vec<(f64, &'static str, &'static str)>,
    no_value: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub struct Target {
    pub expr: String,
    /// The legend with `{{label}}`, or the heading of a table column.
    pub legend: &'static str,
    /// The unit of a table column.
    unit: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Row,
    Timeseries,
    Stat,
    Bars,
    Table,
    Xy,
}

fn panel(kind: Kind, title: &'static str, description: &'static str, unit: &'static str) -> Panel {
    let (width, height) = match kind {
        Kind::Row => (COLUMNS, 1),
        Kind::Stat => (6, 4),
        Kind::Timeseries | Kind::Bars => (12, 8),
        Kind::Table => (COLUMNS, 7),
        Kind::Xy => (12, 9),
    };
    Panel {
        targets: Vec::new(),
        title,
        kind,
        description,
        unit,
        width,
        height,
        min: None,
        max: None,
        decimals: None,
        stacked: false,
        bars: false,
        money: false,
        sort: None,
        thresholds: Vec::new(),
        value_texts: Vec::new(),
        no_value: None,
    }
}

/// A row heading.
pub(crate) fn row(title: &'static str) -> Panel {
    panel(Kind::Row, title, "", "")
}

/// Lines over time, with an axis that begins at zero.
pub(crate) fn time_series(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    Panel { min: Some(0.0), ..panel(Kind::Timeseries, title, description, unit) }
}

/// One large number per series, the latest value.
pub(crate) fn stat(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    panel(Kind::Stat, title, description, unit)
}

/// One bar per series, of the latest value or of the whole time range.
pub(crate) fn bars(title: &'static str, unit: &'static str, description: &'static str) -> Panel {
    Panel { min: Some(0.0), ..panel(Kind::Bars, title, description, unit) }
}

/// One row per label set and one column per query.
pub(crate) fn table(title: &'static str, description: &'static str) -> Panel {
    panel(Kind::Table, title, description, "none")
}

/// One point per label set, in the colour of its encoder: the first column is the position, the
/// second the height.
pub(crate) fn xy_chart(title: &'static str, description: &'static str) -> Panel {
    panel(Kind::Xy, title, description, "none")
}

impl Panel {
    /// Whether labels are columns instead of parts of a series' name.
    pub(crate) fn has_columns(&self) -> bool {
        self.kind == Kind::Table || self.kind == Kind::Xy
    }

    /// Whether it shows values over time, and not only the latest.
    pub(crate) fn is_over_time(&self) -> bool {
        self.kind == Kind::Timeseries
    }

    pub(crate) fn is_money(&self) -> bool {
        self.money
    }

    pub(crate) fn unit(&self) -> &'static str {
        self.unit
    }

    pub(crate) fn is_row(&self) -> bool {
        self.kind == Kind::Row
    }

    pub(crate) fn query(mut self, expr: impl Into<String>, legend: &'static str) -> Self {
        self.targets.push(Target { expr: expr.into(), legend, unit: None });
        self
    }

    pub(crate) fn column(mut self, expr: impl Into<String>, heading: &'static str, unit: &'static str) -> Self {
        self.targets.push(Target { expr: expr.into(), legend: heading, unit: Some(unit) });
        self
    }

    pub(crate) fn width(mut self, columns: u32) -> Self {
        self.width = columns;
        self
    }

    pub(crate) fn height(mut self, rows: u32) -> Self {
        self.height = rows;
        self
    }

    pub(crate) fn stacked(mut self) -> Self {
        self.stacked = true;
        self
    }

    /// Draws bars over time instead of lines.
    pub(crate) fn draw_bars(mut self) -> Self {
        self.bars = true;
        self
    }

    /// Amounts in the currency that is in the name of each series.
    pub(crate) fn money(mut self) -> Self {
        self.money = true;
        self
    }

    /// The column by which a table is sorted, and whether the largest value is first.
    pub(crate) fn sorted_by(mut self, heading: &'static str, descending: bool) -> Self {
        self.sort = Some((heading, descending));
        self
    }

    pub(crate) fn axis_range(mut self, min: Option<f64>, max: Option<f64>) -> Self {
        (self.min, self.max) = (min, max);
        self
    }

    pub(crate) fn decimals(mut self, decimals: u32) -> Self {
        self.decimals = Some(decimals);
        self
    }

    pub(crate) fn thresholds(mut self, thresholds: &[Threshold]) -> Self {
        self.thresholds = thresholds.to_vec();
        self
    }

    /// Texts and colours of single values.
    pub(crate) fn value_texts(mut self, value_texts: &[(f64, &'static str, &'static str)]) -> Self {
        self.value_texts = value_texts.to_vec();
        self
    }

    /// The text that replaces "No data" where an empty result is normal.
    pub(crate) fn no_value(mut self, text: &'static str) -> Self {
        self.no_value = Some(text);
        self
    }

    /// Its place is in columns and rows of the grid.
    pub(super) fn json(&self, x: u32, y: u32) -> Value {
        let place = json!({ "h": self.height, "w": self.width, "x": x, "y": y });
        if self.kind == Kind::Row {
            return json!({ "type": "row", "title": self.title, "collapsed": false, "gridPos": place, "panels": [] });
        }
        let source = json!({ "type": "prometheus", "uid": "${datasource}" });
        let now = self.kind != Kind::Timeseries && self.kind != Kind::Stat;
        let targets: Vec<Value> = (b'A'..)
            .zip(&self.targets)
            .map(|(letter, target)| {
                json!({
                    "datasource": source,
                    "editorMode": "code",
                    "expr": target.query(),
                    "format": if self.has_columns() { "table" } else { "time_series" },
                    "instant": now,
                    "range": !now,
                    "legendFormat": target.legend,
                    "refId": char::from(letter).to_string(),
                })
            })
            .collect();
        let mut json = json!({
            "type": match self.kind {
                Kind::Timeseries => "timeseries",
                Kind::Stat => "stat",
                Kind::Bars => "bargauge",
                Kind::Xy => "xychart",
                Kind::Row | Kind::Table => "table",
            },
            "title": self.title,
            "description": self.description,
            "datasource": source,
            "gridPos": place,
            "targets": targets,
            "fieldConfig": { "defaults": self.defaults(), "overrides": self.overrides() },
            "options": self.options(),
        });
        if self.has_columns() {
            json["transformations"] = self.columns();
        }
        if self.kind == Kind::Xy {
            // Without it Grafana takes the options for those of an XY chart before 11.1.
            json["pluginVersion"] = json!("12.1.0");
        }
        json
    }

    fn defaults(&self) -> Value {
        let thresholds = if self.thresholds.is_empty() { vec![(None, "green")] } else { self.thresholds.clone() };
        let steps: Vec<Value> =
            thresholds.iter().map(|(from, color)| json!({ "color": color, "value": from })).collect();
        let mut json = json!({
            "unit": self.unit,
            "color": match self.kind {
                Kind::Timeseries | Kind::Xy => json!({ "mode": "palette-classic" }),
                // Whether a long bar is good or bad depends on the metric.
                Kind::Bars if self.thresholds.is_empty() => json!({ "mode": "fixed", "fixedColor": "blue" }),
                _ => json!({ "mode": "thresholds" }),
            },
            "thresholds": { "mode": "absolute", "steps": steps },
            "mappings": [],
        });
        for (key, value) in [("min", self.min), ("max", self.max)] {
            if let Some(value) = value {
                json[key] = json!(value);
            }
        }
        if let Some(decimals) = self.decimals.or((self.unit == "sci").then_some(3)) {
            json["decimals"] = json!(decimals);
        }
        if let Some(text) = self.no_value {
            json["noValue"] = json!(text);
        }
        if !self.value_texts.is_empty() {
            let named = self.value_texts.iter().enumerate().map(|(at, (value, text, color))| {
                (value.to_string(), json!({ "text": text, "color": color, "index": at }))
            });
            json["mappings"] = json!([{ "type": "value", "options": Value::Object(named.collect()) }]);
        }
        let links = self.series_links();
        if !links.is_empty() {
            json["links"] = json!(links);
        }
        if self.kind == Kind::Xy {
            json["custom"] = json!({ "show": "points", "pointSize": { "fixed": 8 }, "fillOpacity": 50 });
        }
        if self.kind == Kind::Timeseries {
            json["custom"] = json!({
                "drawStyle": if self.bars { "bars" } else { "line" },
                "lineWidth": 1,
                "fillOpacity": if self.stacked || self.bars { 30 } else { 8 },
                "showPoints": "auto",
                "spanNulls": false,
                "stacking": { "group": "A", "mode": if self.stacked { "normal" } else { "none" } },
                "thresholdsStyle": { "mode": if self.thresholds.is_empty() { "off" } else { "dashed" } },
            });
        }
        json
    }

    fn overrides(&self) -> Vec<Value> {
        let columns = self.targets.iter().filter_map(|target| {
            target.unit.map(|unit| {
                let mut properties = vec![json!({ "id": "unit", "value": unit })];
                if unit == "sci" {
                    properties.push(json!({ "id": "decimals", "value": 3 }));
                }
                // An XY chart adds the encoder to the name of the column.
                let matcher = match self.kind {
                    Kind::Xy => json!({ "id": "byRegexp", "options": format!("/^{}( |$)/", target.legend) }),
                    _ => json!({ "id": "byName", "options": target.legend }),
                };
                json!({ "matcher": matcher, "properties": properties })
            })
        });
        let currencies = CURRENCIES.iter().filter(|_| self.money).map(|code| {
            json!({
                "matcher": { "id": "byRegexp", "options": format!("/(^| ){code}( |$)/") },
                "properties": [{ "id": "unit", "value": format!("currency{code}") }],
            })
        });
        columns.chain(currencies).chain(self.column_links()).collect()
    }

    /// Links from each series to its details.
    fn series_links(&self) -> Vec<Value> {
        let in_all_names =
            |label: &str| self.targets.iter().all(|target| target.legend.contains(&format!("{{{{{label}}}}}")));
        let details = DETAILS.iter().filter(|(label, ..)| !self.has_columns() && in_all_names(label));
        details.map(|detail| link(detail, &format!("${{__field.labels.{}:percentencode}}", detail.0))).collect()
    }

    /// Links in those columns of a table that have details.
    fn column_links(&self) -> Vec<Value> {
        let is_column = |label: &str| self.targets.iter().any(|target| grouping(&target.expr).any(|by| by == label));
        let details = DETAILS.iter().filter(|(label, ..)| self.kind == Kind::Table && is_column(label));
        details
            .map(|detail| {
                json!({
                    "matcher": { "id": "byName", "options": heading(detail.0) },
                    "properties": [{ "id": "links", "value": [link(detail, "${__value.raw:percentencode}")] }],
                })
            })
            .collect()
    }

    fn options(&self) -> Value {
        let reduce = json!({ "calcs": ["lastNotNull"], "fields": "", "values": false });
        match self.kind {
            Kind::Row => json!({}),
            Kind::Timeseries => json!({
                "legend": { "calcs": ["mean", "max", "lastNotNull"], "displayMode": "table", "placement": "bottom", "showLegend": true },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
            Kind::Stat => json!({
                "colorMode": if self.value_texts.is_empty() && self.thresholds.is_empty() { "value" } else { "background" },
                "graphMode": if self.value_texts.is_empty() { "area" } else { "none" },
                "justifyMode": "auto",
                "orientation": "auto",
                "reduceOptions": reduce,
                "textMode": "auto",
            }),
            Kind::Bars => json!({
                "displayMode": "basic",
                "maxVizHeight": 40,
                "minVizHeight": 16,
                "namePlacement": "left",
                "orientation": "horizontal",
                "sizing": "manual",
                "reduceOptions": reduce,
                "showUnfilled": true,
                "valueMode": "color",
            }),
            Kind::Table => {
                let sort: Vec<Value> = self
                    .sort
                    .iter()
                    .map(|(heading, descending)| json!({ "displayName": heading, "desc": descending }))
                    .collect();
                json!({ "cellHeight": "sm", "showHeader": true, "footer": { "show": false }, "sortBy": sort })
            }
            Kind::Xy => json!({
                "mapping": "auto",
                "series": [],
                // Only versions before 11.1 read these two, for which the first frame is all.
                "seriesMapping": "auto",
                "dims": { "frame": 0 },
                "legend": { "calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": true },
                "tooltip": { "mode": "single", "sort": "none" },
            }),
        }
    }

    /// Merges rows with equal labels, and names the columns: those of labels come first. An XY
    /// chart has a table for each encoder, and takes its first two columns of numbers.
    fn columns(&self) -> Value {
        let values = (b'A'..).zip(&self.targets).map(|(letter, target)| {
            let name =
                if self.targets.len() == 1 { "Value".to_owned() } else { format!("Value #{}", char::from(letter)) };
            (name, json!(target.legend))
        });
        let mut names: Map<String, Value> = values.collect();
        let mut order = Map::new();
        if self.kind == Kind::Table {
            names.extend(HEADINGS.iter().chain([&CURRENCY]).map(|(label, text)| ((*label).to_owned(), json!(text))));
            order.extend(HEADINGS.iter().zip(0..).map(|((label, _), at)| ((*label).to_owned(), json!(at))));
        }
        let mut steps = vec![
            json!({ "id": "merge", "options": {} }),
            json!({
                "id": "organize",
                "options": { "excludeByName": { "Time": true }, "indexByName": order, "renameByName": names },
            }),
        ];
        if self.kind == Kind::Xy {
            let options = json!({ "fields": ["encoder"], "keepFields": false, "naming": { "asLabels": true } });
            steps.push(json!({ "id": "partitionByValues", "options": options }));
        }
        Value::Array(steps)
    }
}

/// The labels of the outermost grouping of a query.
fn grouping(expr: &str) -> impl Iterator<Item = &str> {
    let labels = expr.split_once("by (").and_then(|(_, rest)| rest.split_once(')')).map_or("", |(labels, _)| labels);
    labels.split(',').map(str::trim)
}

/// The heading of a label's column.
fn heading(label: &str) -> &str {
    HEADINGS.iter().find(|(known, _)| *known == label).map_or(label, |(_, heading)| *heading)
}

/// The link to the details of a series, with the data source and the time range of this dashboard.
fn link((label, uid, title): &(&str, &str, &str), value: &str) -> Value {
    json!({
        "title": title,
        "url": format!("/d/{uid}?${{datasource:queryparam}}&var-{label}={value}&${{__url_time_range}}"),
        "targetBlank": false,
    })
}

impl Target {
    /// The query as it is in the file, with matchers instead of `$S`.
    #[must_use]
    pub fn query(&self) -> String {
        self.expr.replace("$S", "job=~\"$job\", instance=~\"$instance\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(links: &Value) -> Vec<&str> {
        links.as_array().into_iter().flatten().filter_map(|link| link["url"].as_str()).collect()
    }

    #[test]
    fn series_and_cells_link_to_their_details() {
        let of_container = "/d/power-attribution?${datasource:queryparam}&var-container=${__field.labels.container:percentencode}&${__url_time_range}";
        let one = bars("t", "watt", "d").query("sum by (container) (g)", "{{container}} {{instance}}");
        assert_eq!(urls(&one.json(0, 0)["fieldConfig"]["defaults"]["links"]), [of_container]);
        // A link from a series without the label would select nothing.
        let two = one.query("sum(g)", "all");
        assert_eq!(two.json(0, 0)["fieldConfig"]["defaults"]["links"], Value::Null);

        let json = table("t", "d").column("max by (scenario, run) (g)", "G", "watt").json(0, 0);
        assert_eq!(json["fieldConfig"]["overrides"][0]["matcher"]["options"], "G");
        assert_eq!(json["fieldConfig"]["overrides"][1]["matcher"]["options"], "Run");
        assert_eq!(
            urls(&json["fieldConfig"]["overrides"][1]["properties"][0]["value"]),
            ["/d/results-overview?${datasource:queryparam}&var-run=${__value.raw:percentencode}&${__url_time_range}"]
        );
    }

    #[test]
    fn amounts_have_the_sign_of_the_currency_in_their_name() {
        let json = time_series("t", "none", "d").money().query("g", "{{container}} {{currency}}").json(0, 0);
        assert_eq!(json["fieldConfig"]["defaults"]["unit"], "none");
        let overrides = json["fieldConfig"]["overrides"].as_array().unwrap();
        assert_eq!(overrides.len(), CURRENCIES.len());
        assert!(overrides.contains(&json!({
            "matcher": { "id": "byRegexp", "options": "/(^| )USD( |$)/" },
            "properties": [{ "id": "unit", "value": "currencyUSD" }],
        })));
    }

    #[test]
    fn xy_chart_keeps_the_units_of_its_columns_per_encoder() {
        let chart = xy_chart("t", "d").column("max by (encoder) (v)", "VMAF", "none");
        let json = chart.column("max by (encoder) (e)", "Energy", "joule").json(0, 0);
        assert_eq!(json["pluginVersion"], "12.1.0");
        assert_eq!(json["targets"][1]["format"], "table");
        assert_eq!(json["transformations"][2]["options"]["fields"], json!(["encoder"]));
        // Grafana renames the column "Energy libx264".
        let unit = &json["fieldConfig"]["overrides"][1];
        assert_eq!(unit["matcher"], json!({ "id": "byRegexp", "options": "/^Energy( |$)/" }));
        assert_eq!(unit["properties"][0]["value"], "joule");
    }
}
