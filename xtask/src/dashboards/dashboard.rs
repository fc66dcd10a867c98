//! Dashboards, and their form in Grafana's classic model (schema 42): positions of panels,
//! variables, events and links are added in the same way for all.

use serde_json::{Value, json};

use super::panel::{COLUMNS, Panel, Target};

/// Version of the classic model. Grafana 12 and 13 write 42; older versions ignore unknown fields.
const SCHEMA: u32 = 42;
/// The dashboard to which all others link.
pub(super) const OVERVIEW: &str = "wattcast-overview";

#[derive(Clone, Debug)]
pub struct Dashboard {
    /// Part of the address, which must not change: links and bookmarks contain it.
    pub uid: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub folder: Folder,
    pub variables: VariableSource,
    /// UID and title of the dashboard that replaces this one, which is then an address that old
    /// links contain, and stays out of the menu of dashboards.
    pub moved_to: Option<(&'static str, &'static str)>,
    /// Row headings and panels in reading order.
    pub panels: Vec<Panel>,
}

/// A folder of Grafana.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    Wattcast,
    /// Dashboards of the legacy metric names, and those that only an old link leads to.
    Legacy,
}

/// Events that all charts over time show as vertical lines.
#[derive(Debug)]
pub struct Annotation {
    pub name: &'static str,
    pub expr: &'static str,
    title: &'static str,
    tags: &'static str,
    color: &'static str,
    /// The values are the times of the events in milliseconds; otherwise an event lasts as long as
    /// there are values.
    values_are_times: bool,
}

const ANNOTATIONS: [Annotation; 3] = [
    Annotation {
        name: "Run starts",
        expr: "min by (run) (wattcast_run_start_timestamp_seconds) * 1000",
        title: "Run {{run}} starts",
        tags: "run",
        color: "blue",
        values_are_times: true,
    },
    Annotation {
        name: "Run ends",
        expr: "max by (run) (wattcast_run_end_timestamp_seconds) * 1000",
        title: "Run {{run}} ends",
        tags: "run",
        color: "purple",
        values_are_times: true,
    },
    Annotation {
        name: "Firing alerts",
        expr: "max by (alertname, severity) (ALERTS{alertstate=\"firing\"})",
        title: "{{alertname}}",
        tags: "severity",
        color: "red",
        values_are_times: false,
    },
];

/// The metrics from which a dashboard's variables take their values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VariableSource {
    /// The family whose labels `job` and `instance` give the variables of these names.
    pub family: &'static str,
    /// Further variables: name, displayed label, family and label of the values. A name that ends
    /// in `!` has a single value.
    pub further: &'static [(&'static str, &'static str, &'static str, &'static str)],
}

impl Annotation {
    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "datasource": { "type": "prometheus", "uid": "${datasource}" },
            "enable": true,
            "hide": false,
            "iconColor": self.color,
            "expr": self.expr,
            "titleFormat": self.title,
            "textFormat": "",
            "tagKeys": self.tags,
            "useValueForTime": self.values_are_times,
        })
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

    /// The events that its charts show: none without a chart over time.
    #[must_use]
    pub fn annotations(&self) -> &'static [Annotation] {
        if self.panels.iter().any(Panel::is_over_time) { &ANNOTATIONS } else { &[] }
    }

    /// The link to the replacement of this dashboard, if it has one, the link to the overview, and
    /// the other dashboards: a menu, or on the overview a link to each.
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
        let overview = (self.uid != OVERVIEW).then(|| {
            json!({
                "type": "link",
                "title": "Overview",
                "tags": [],
                "asDropdown": false,
                "includeVars": false,
                "keepTime": true,
                "targetBlank": false,
                "icon": "apps",
                "tooltip": "Power, streams, results and health in one view",
                "url": format!("/d/{OVERVIEW}"),
            })
        });
        let menu = json!({
            "type": "dashboards",
            "title": "Wattcast",
            "tags": ["wattcast"],
            "asDropdown": self.uid != OVERVIEW,
            "includeVars": false,
            "keepTime": true,
            "targetBlank": false,
            "icon": "external link",
            "tooltip": "The other dashboards",
            "url": "",
        });
        replacement.into_iter().chain(overview).chain([menu]).collect()
    }

    /// The data source, the dashboard's own variables, and the selection of targets, which few
    /// readers change.
    fn variables(&self) -> Vec<Value> {
        let mut variables = vec![json!({
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
        })];
        for (name, label, family, of) in self.variables.further {
            let query = format!("label_values({family}, {of})");
            let single = name.strip_suffix('!');
            variables.push(variable(single.unwrap_or(name), label, &query, single.is_none()));
        }
        let instances = format!("label_values({}{{job=~\"$job\"}}, instance)", self.variables.family);
        variables.push(variable("instance", "Instance", &instances, true));
        variables.push(variable("job", "Job", &format!("label_values({}, job)", self.variables.family), true));
        variables
    }

    /// The content of the file that Grafana reads.
    #[must_use]
    pub fn json(&self) -> Value {
        let (mut x, mut y, mut line) = (0, 0, 0);
        let mut panels = Vec::new();
        for (panel, id) in self.panels.iter().zip(1..) {
            if x + panel.width > COLUMNS || panel.is_row() {
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
            "annotations": { "list": self.annotations().iter().map(Annotation::json).collect::<Vec<_>>() },
            "links": self.links(),
            "templating": { "list": self.variables() },
            "panels": panels,
        })
    }
}
