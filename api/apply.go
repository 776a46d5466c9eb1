package api

import "net/url"

// Action is what an apply did to one object.
type Action string

// Actions of an apply or a deletion.
const (
	Created    Action = "created"
	Configured Action = "configured"
	Unchanged  Action = "unchanged"
	Deleted    Action = "deleted"
	Absent     Action = "absent"  // there was nothing to delete
	Skipped    Action = "skipped" // its kind is not known; see ManifestOptions
)

// ManifestOptions say how to read a manifest and what to do with it.
type ManifestOptions struct {
	// Namespace is the namespace of objects that name none, and those that name another
	// are refused. If it is empty, objects that name none go to default.
	Namespace string
	// DryRun changes nothing; the result is what would have happened.
	DryRun bool
	// IgnoreUnknown skips objects of unknown kinds instead of refusing the manifest.
	IgnoreUnknown bool
	// TakeOver changes objects that belong to a source, too. They then belong to whoever
	// applied them.
	TakeOver bool
}

// Names of the options in a request's query.
const (
	queryNamespace     = "namespace"
	queryDryRun        = "dry-run"
	queryIgnoreUnknown = "ignore-unknown"
	queryTakeOver      = "take-over"
)

func (o ManifestOptions) query() url.Values {
	query := inNamespace(o.Namespace)
	if o.DryRun {
		query.Set(queryDryRun, "true")
	}
	if o.IgnoreUnknown {
		query.Set(queryIgnoreUnknown, "true")
	}
	if o.TakeOver {
		query.Set(queryTakeOver, "true")
	}
	return query
}

// ReadManifestOptions reads the options from a Client's query.
func ReadManifestOptions(query url.Values) (o ManifestOptions, err error) {
	o.Namespace = query.Get(queryNamespace)
	for name, to := range map[string]*bool{queryDryRun: &o.DryRun, queryIgnoreUnknown: &o.IgnoreUnknown, queryTakeOver: &o.TakeOver} {
		switch v := query.Get(name); v {
		case "", "false":
		case "true":
			*to = true
		default:
			return o, Invalid("write true or false", "%s is %q", name, v)
		}
	}
	return o, nil
}

// ApplyResult answers POST /v1/apply and DELETE of objects.
type ApplyResult struct {
	Cluster string          `json:"cluster"`
	DryRun  bool            `json:"dryRun,omitempty"`
	Objects []AppliedObject `json:"objects"`
	// Warnings list what was accepted but may not do what its author expects.
	Warnings []Problem `json:"warnings,omitempty"`
}

// AppliedObject is one object of a manifest and what happened to it.
type AppliedObject struct {
	Cluster   string `json:"cluster"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	Action    Action `json:"action"`
}
