//! What a dashboard is made of, and its form in Grafana's classic model (schema 42).
//!
//! Panels are described by what they ask and what they show; what Grafana wants beside that (places, ids of targets, the data source of each) is put in
//! here, the same for all. Kinds of panel are those that every Grafana since 8 has; a pie or a gauge says nothing that a bar does not.

use serde_json::{Value, json};

/// Grafana's classic model that is written. 42 is what Grafana 12 and 13 write; older ones ignore what they do not know.
const SCHEMA: u32 = 42;
/// Columns of a dashboard.
const COLUMNS: u32 = 24;

/// A dashboard.
#[derive(Clone, Debug)]
pub struct Board {
    /// Its address for ever: links and bookmarks have it.
    pub uid: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What it answers.
    pub about: &'static str,
    /// What its variables are made of.
    pub home: Home,
    /// Rows and panels, in reading order.
    pub panels: Vec<Panel>,
}

/// Whose metrics a dashboard is about, which says what can be chosen in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    /// The family that the variables `job` and `instance` are made of.
    pub family: &'static str,
    /// More variables: name, label to show, the family and its label that the values are of.
    /// A name that ends in `!` is chosen singly.
    pub more: &'static [(&'static str, &'static str, &'static str, &'static str)],
}

/// One value of a list of thresholds: from where on, and the colour.
pub(super) type Step = (Option<f64>, &'static str);

/// A row's heading, or a panel.
#[derive(Clone, Debug)]
pub struct Panel {
    /// What is asked, in PromQL, with `$S` for the chosen job and instance.
    pub targets: Vec<Target>,
    /// What stands above it.
    pub title: &'static str,
    kind: Kind,
    about: &'static str,
    unit: &'static str,
    width: u32,
    height: u32,
    min: Option<f64>,
    max: Option<f64>,
    decimals: Option<u32>,
    stacked: bool,
    bars: bool,
    steps: Vec<Step>,
    mapping: Vec<(f64, &'static str, &'static str)>,
    empty: Option<&'static str>,
}

/// A query of a panel.
#[derive(Clone, Debug)]
pub struct Target {
    /// PromQL.
    pub expr: String,
    /// The legend, with `{{label}}`; the column's heading in a table.
    pub legend: &'static str,
    /// The unit of this column, where it is not the panel's.
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

fn panel(kind: Kind, title: &'static str, about: &'static str, unit: &'static str) -> Panel {
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
        about,
        unit,
        width,
        height,
        min: None,
        max: None,
        decimals: None,
        stacked: false,
        bars: false,
        steps: Vec::new(),
        mapping: Vec::new(),
        empty: None,
    }
}

/// The heading of what follows.
pub(crate) fn row(title: &'static str) -> Panel {
    panel(Kind::Row, title, "", "")
}

/// Curves over time, beginning at zero.
pub(crate) fn curves(title: &'static str, unit: &'static str, about: &'static str) -> Panel {
    Panel { min: Some(0.0), ..panel(Kind::Timeseries, title, about, unit) }
}

/// One large number for each series, of now.
pub(crate) fn stat(title: &'static str, unit: &'static str, about: &'static str) -> Panel {
    panel(Kind::Stat, title, about, unit)
}

/// A bar for each series, of now or of the whole time shown.
pub(crate) fn bars(title: &'static str, unit: &'static str, about: &'static str) -> Panel {
    Panel { min: Some(0.0), ..panel(Kind::Bars, title, about, unit) }
}

/// A line for each thing, a column for each query.
pub(crate) fn table(title: &'static str, about: &'static str) -> Panel {
    panel(Kind::Table, title, about, "none")
}

impl Panel {
    pub(crate) fn is_table(&self) -> bool {
        self.kind == Kind::Table
    }

    pub(crate) fn ask(mut self, expr: impl Into<String>, legend: &'static str) -> Self {
        self.targets.push(Target { expr: expr.into(), legend, unit: None });
        self
    }

    pub(crate) fn column(mut self, expr: impl Into<String>, heading: &'static str, unit: &'static str) -> Self {
        self.targets.push(Target { expr: expr.into(), legend: heading, unit: Some(unit) });
        self
    }

    pub(crate) fn wide(mut self, columns: u32) -> Self {
        self.width = columns;
        self
    }

    pub(crate) fn high(mut self, rows: u32) -> Self {
        self.height = rows;
        self
    }

    pub(crate) fn stacked(mut self) -> Self {
        self.stacked = true;
        self
    }

    /// Bars over time in place of curves.
    pub(crate) fn in_bars(mut self) -> Self {
        self.bars = true;
        self
    }

    pub(crate) fn between(mut self, min: Option<f64>, max: Option<f64>) -> Self {
        (self.min, self.max) = (min, max);
        self
    }

    pub(crate) fn decimals(mut self, decimals: u32) -> Self {
        self.decimals = Some(decimals);
        self
    }

    pub(crate) fn steps(mut self, steps: &[Step]) -> Self {
        self.steps = steps.to_vec();
        self
    }

    /// What single values are called, and their colour.
    pub(crate) fn called(mut self, mapping: &[(f64, &'static str, &'static str)]) -> Self {
        self.mapping = mapping.to_vec();
        self
    }

    /// What is written where nothing comes, because nothing is well.
    pub(crate) fn or_else(mut self, words: &'static str) -> Self {
        self.empty = Some(words);
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
                    "expr": put_in(&target.expr),
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
            "description": self.about,
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
        let steps = if self.steps.is_empty() { vec![(None, "green")] } else { self.steps.clone() };
        let steps: Vec<Value> = steps.iter().map(|(from, color)| json!({ "color": color, "value": from })).collect();
        let mut json = json!({
            "unit": self.unit,
            "color": match self.kind {
                Kind::Timeseries => json!({ "mode": "palette-classic" }),
                // Long is not bad and short not good: it depends on what is shown.
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
        if let Some(words) = self.empty {
            json["noValue"] = json!(words);
        }
        if !self.mapping.is_empty() {
            let named = self.mapping.iter().enumerate().map(|(at, (value, text, color))| {
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
                "thresholdsStyle": { "mode": if self.steps.is_empty() { "off" } else { "dashed" } },
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
                "colorMode": if self.mapping.is_empty() && self.steps.is_empty() { "value" } else { "background" },
                "graphMode": if self.mapping.is_empty() { "area" } else { "none" },
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

    /// One line for what has the same labels, and headings for the queries.
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

/// `$S` is whom the variables chose.
fn put_in(expr: &str) -> String {
    expr.replace("$S", "job=~\"$job\", instance=~\"$instance\"")
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
        // The values come with time: a host that began an hour ago is there when one looks again.
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

impl Board {
    /// All queries, as they are written.
    pub fn queries(&self) -> impl Iterator<Item = (&Panel, &Target, String)> {
        let of = |panel| std::iter::repeat(panel);
        self.panels
            .iter()
            .flat_map(move |panel: &Panel| of(panel).zip(&panel.targets))
            .map(|(panel, target)| (panel, target, put_in(&target.expr)))
    }

    /// One query, as it is written.
    #[must_use]
    pub fn written(&self, target: &Target) -> String {
        put_in(&target.expr)
    }

    /// The file that Grafana reads.
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
            variable("job", "Job", &format!("label_values({}, job)", self.home.family), true),
            variable(
                "instance",
                "Instance",
                &format!("label_values({}{{job=~\"$job\"}}, instance)", self.home.family),
                true,
            ),
        ];
        for (name, label, family, of) in self.home.more {
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
            "description": self.about,
            "tags": ["wattcast"],
            "schemaVersion": SCHEMA,
            "version": 1,
            "editable": false,
            "graphTooltip": 1,
            "refresh": "10s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "fiscalYearStartMonth": 0,
            "annotations": { "list": [] },
            "links": [{
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
            }],
            "templating": { "list": variables },
            "panels": panels,
        })
    }
}
