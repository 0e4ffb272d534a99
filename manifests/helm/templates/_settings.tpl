{{/*
What `tulle install --set` does to the manifests, in Helm's words. A definition can't return a value: each changes the
object that it is given.
*/}}

{{/* The objects of a file, added to .into. */}}
{{- define "tulle.read" -}}
{{- range $text := splitList "\n---\n" (.files.Get .file) }}
{{- $_ := set $.into "objects" (append $.into.objects (fromYaml $text)) }}
{{- end }}
{{- end }}

{{/* Gives a container a flag, in the place of the one that it has. Without a value nothing is done. */}}
{{- define "tulle.flag" -}}
{{- if .value }}
{{- $name := printf "%s=" .name }}
{{- $flag := print $name .value }}
{{- $args := list }}
{{- $had := false }}
{{- range .container.args }}
{{- if hasPrefix $name . }}
{{- $args = append $args $flag }}
{{- $had = true }}
{{- else }}
{{- $args = append $args . }}
{{- end }}
{{- end }}
{{- if not $had }}
{{- $args = append $args $flag }}
{{- end }}
{{- $_ := set .container "args" $args }}
{{- end }}
{{- end }}

{{/* The control plane's Deployment. */}}
{{- define "tulle.control-plane" -}}
{{- $values := .values }}
{{- with $values.replicas }}
{{- $_ := set $.object.spec "replicas" . }}
{{- end }}
{{- $container := first .object.spec.template.spec.containers }}
{{- template "tulle.image" (dict "container" $container "image" $values.image "values" $values) }}
{{- with $values.cpuRequest }}
{{- $_ := set $container.resources.requests "cpu" . }}
{{- end }}
{{- with $values.memoryRequest }}
{{- $_ := set $container.resources.requests "memory" . }}
{{- end }}
{{- with $values.memoryLimit }}
{{- $_ := set $container.resources.limits "memory" . }}
{{- end }}
{{- range $name, $value := dict
  "--sidecar-image" $values.sidecarImage
  "--sidecar-pull-policy" $values.imagePullPolicy
  "--trust-domain" $values.trustDomain
  "--cluster-domain" $values.clusterDomain
  "--redirection" $values.redirection
  "--trust-bundle" $values.trustBundle
  "--sidecar-log-level" $values.sidecarLogLevel
  "--sidecar-otlp" $values.sidecarOtlp }}
{{- template "tulle.flag" (dict "container" $container "name" $name "value" $value) }}
{{- end }}
{{- end }}

{{/* A container's image, and when it is pulled. */}}
{{- define "tulle.image" -}}
{{- with .image }}
{{- $_ := set $.container "image" . }}
{{- end }}
{{- with .values.imagePullPolicy }}
{{- $_ := set $.container "imagePullPolicy" . }}
{{- end }}
{{- end }}

{{/* What becomes of new pods while no control plane answers. */}}
{{- define "tulle.failure-policy" -}}
{{- $policy := .values.failurePolicy | default (ternary "Fail" "" .values.ha) }}
{{- if $policy }}
{{- range .object.webhooks }}
{{- $_ := set . "failurePolicy" $policy }}
{{- end }}
{{- end }}
{{- end }}
