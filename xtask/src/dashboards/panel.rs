//! Dashboards and panels, and their form in Grafana's classic model (schema 42).
//!
//! A description lists queries and display options; positions, target ids and data sources are
//! added here in the same way for all panels. Only the kinds of panel that every Grafana since 8
//! has are used; a pie or a gauge shows nothing that a bar does not.

use serde_json::{Value, json};

/// Version of the classic model. Grafana 12 and 13 write 42; older versions ignore unknown fields.
const SCHEMA: u32 = 42;
/// Width of a dashboard in grid columns.
const COLUMNS: u32 = 24;

#[derive(Clone, Debug)]
pub struct Dashboard {
    /// Part of the address, which must not change: links and bookmarks contain it.
    pub uid: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub variables: VariableSource,
    /// UID and title of the dashboard that replaces this one, which is then an address that old
    /// links contain, and stays out of the menu of dashboards.
    pub moved_to: Option<(&'static str, &'static str)>,
    /// Row headings and panels in reading order.
    pub panels: Vec<Panel>,
}

/// The metrics from which a dashboard's variables take their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VariableSource {
    /// The family whose labels `job` and `instance` give the variables of these names.
    pub family: &'static str,
    /// Further variables: name, displayed label, family and label of the values. A name that ends
    /// in `!` has a single value.
    pub further: &'static [(&'static str, &'static str, &'static str, &'static str)],
}

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
    width: u32,
    height: u32,
    min: Option<f64>,
    max: Option<f64>,
    decimals: Option<u32>,
    stacked: bool,
    bars: bool,
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
}

fn panel(kind: Kind, title: &'static str, description: &'static str, unit: &'static str) -> Panel {
    let (width, height) = match kind {
        Kind::Row => (COLUMNS, 1),
        Kind::Stat => (6, 4),
        Kind::Timeseries | Kind::Bars => (12, 8),
        Kind::Table => (COLUMNS, 7),
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

impl Panel {
    pub(crate) fn is_table(&self) -> bool {
        self.kind == Kind::Table
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

    fn json(&self, x: u32, y: u32) -> Value {
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
                    "format": if self.kind == Kind::Table { "table" } else { "time_series" },
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
        if self.kind == Kind::Table {
            json["transformations"] = self.columns();
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
                Kind::Timeseries => json!({ "mode": "palette-classic" }),
                // Whether a long bar is good or bad depends on the metric.
                Kind::Bars => json!({ "mode": "fixed", "fixedColor": "blue" }),
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
        let own = self.targets.iter().filter_map(|target| {
            target.unit.map(|unit| {
                let mut properties = vec![json!({ "id": "unit", "value": unit })];
                if unit == "sci" {
                    properties.push(json!({ "id": "decimals", "value": 3 }));
                }
                json!({ "matcher": { "id": "byName", "options": target.legend }, "properties": properties })
            })
        });
        own.collect()
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
            Kind::Table => json!({ "cellHeight": "sm", "showHeader": true, "footer": { "show": false } }),
        }
    }

    /// Merges rows with equal labels, and names the columns of the queries.
    fn columns(&self) -> Value {
        let headings = (b'A'..).zip(&self.targets).map(|(letter, target)| {
            let name =
                if self.targets.len() == 1 { "Value".to_owned() } else { format!("Value #{}", char::from(letter)) };
            (name, json!(target.legend))
        });
        json!([
            { "id": "merge", "options": {} },
            {
                "id": "organize",
                "options": {
                    "excludeByName": { "Time": true },
                    "indexByName": {},
                    "renameByName": Value::Object(headings.collect()),
                },
            },
        ])
    }
}

impl Target {
    /// The query as it is in the file, with matchers instead of `$S`.
    #[must_use]
    pub fn query(&self) -> String {
        self.expr.replace("$S", "job=~\"$job\", instance=~\"$instance\"")
    }
}

fn variable(name: &str, label: &str, query: &str, many: bool) -> Value {
    let all = json!({ "selected": true, "text": "All", "value": "$__all" });
    let mut json = json!({
        "name": name,
        "label": label,
        "type": "query",
        "datasource": { "type": "prometheus", "uid": "${datasource}" },
        "definition": query,
        "query": { "query": query, "refId": name },
        "hide": 0,
        "multi": many,
        "includeAll": many,
        // On time range change: includes hosts that appeared since the dashboard was loaded.
        "refresh": 2,
        "sort": 1,
        "options": [],
        "skipUrlSync": false,
    });
    if many {
        json["allValue"] = json!(".+");
        json["current"] = all;
    }
    json
}

impl Dashboard {
    /// All queries as they are in the file.
    pub fn queries(&self) -> impl Iterator<Item = (&Panel, &Target, String)> {
        let of = |panel| std::iter::repeat(panel);
        self.panels
            .iter()
            .flat_map(move |panel: &Panel| of(panel).zip(&panel.targets))
            .map(|(panel, target)| (panel, target, target.query()))
    }

    /// The link to the replacement of this dashboard, if it has one, and the menu of dashboards.
    fn links(&self) -> Vec<Value> {
        let replacement = self.moved_to.map(|(uid, title)| {
            json!({
                "type": "link",
                "title": title,
                "tags": [],
                "asDropdown": false,
                "includeVars": true,
                "keepTime": true,
                "targetBlank": false,
                "icon": "dashboard",
                "tooltip": "The whole dashboard",
                "url": format!("/d/{uid}"),
            })
        });
        let menu = json!({
            "type": "dashboards",
            "title": "Wattcast",
            "tags": ["wattcast"],
            "asDropdown": true,
            "includeVars": false,
            "keepTime": true,
            "targetBlank": false,
            "icon": "external link",
            "tooltip": "The other dashboards",
            "url": "",
        });
        replacement.into_iter().chain([menu]).collect()
    }

    /// The content of the file that Grafana reads.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut variables = vec![
            json!({
                "name": "datasource",
                "label": "Data source",
                "type": "datasource",
                "query": "prometheus",
                "hide": 0,
                "multi": false,
                "includeAll": false,
                "refresh": 1,
                "regex": "",
                "options": [],
                "skipUrlSync": false,
            }),
            variable("job", "Job", &format!("label_values({}, job)", self.variables.family), true),
            variable(
                "instance",
                "Instance",
                &format!("label_values({}{{job=~\"$job\"}}, instance)", self.variables.family),
                true,
            ),
        ];
        for (name, label, family, of) in self.variables.further {
            let query = format!("label_values({family}, {of})");
            let single = name.strip_suffix('!');
            variables.push(variable(single.unwrap_or(name), label, &query, single.is_none()));
        }
        let (mut x, mut y, mut line) = (0, 0, 0);
        let mut panels = Vec::new();
        for (panel, id) in self.panels.iter().zip(1..) {
            if x + panel.width > COLUMNS || panel.kind == Kind::Row {
                (x, y, line) = (0, y + line, 0);
            }
            let mut json = panel.json(x, y);
            json["id"] = json!(id);
            panels.push(json);
            x += panel.width;
            line = line.max(panel.height);
        }
        json!({
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [if self.moved_to.is_some() { "wattcast-moved" } else { "wattcast" }],
            "schemaVersion": SCHEMA,
            "version": 1,
            "editable": false,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "fiscalYearStartMonth": 0,
            "annotations": { "list": [] },
            "links": self.links(),
            "templating": { "list": variables },
            "panels": panels,
        })
    }
}
