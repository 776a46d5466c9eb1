// Package deploy contains what a plain machine needs to run Weft, systemd units and example
// configuration, and what a Kubernetes cluster needs, a Helm chart.
//
// It only holds the files. An operator installs them; the lab starts its nodes from the
// same ones.
package deploy

import "embed"

// Files holds the units under systemd/ and the examples under example/.
//
//go:embed systemd example
var Files embed.FS

// Chart is the Helm chart, under chart/.
//
//go:embed all:chart
var Chart embed.FS
