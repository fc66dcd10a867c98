{{- define "wattcast.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "wattcast.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "wattcast.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object; those of a program have its selector's too. */}}
{{- define "wattcast.labels" -}}
{{ include "wattcast.common" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- define "wattcast.common" -}}
app.kubernetes.io/part-of: wattcast
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Labels that select the pods of a program: never change. */}}
{{- define "wattcast.probeSelector" -}}
app.kubernetes.io/name: wattcast-probe
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- define "wattcast.analysisSelector" -}}
app.kubernetes.io/name: wattcast-analysis
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
