package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-mesh/weft/api"
)

// selectorFlag adds -l, which selects objects by label as in kubectl.
func selectorFlag(cmd *cobra.Command, text *string) {
	cmd.Flags().StringVarP(text, "selector", "l", "", "select by labels: key=value, key!=value, 'key in (a,b)', key, !key; separated by commas")
}

// parseSelector reads the value of -l; without it, everything is selected.
func parseSelector(cmd *cobra.Command, text string) (labels.Selector, error) {
	s, err := labels.Parse(text)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: --selector %q: %w", cmd.CommandPath(), text, err)}
	}
	return s, nil
}

// selection is the part of a watch that a selector chooses: an object that stops
// matching is gone from it.
type selection struct {
	chosen labels.Selector
	shown  map[string]bool // by namespace/name
}

// pass returns the event as the selection sees it, and whether it is part of it at all.
func (s *selection) pass(ev api.WatchEvent) (api.WatchEvent, bool) {
	name := ev.Namespace + "/" + ev.Name
	switch {
	case s.chosen.Empty() || ev.Type == "synced":
	case len(ev.Object) > 0 && chooses(s.chosen, ev.Object):
		s.shown[name] = true
	case !s.shown[name]:
		return ev, false
	default:
		delete(s.shown, name)
		ev.Type, ev.Object = "delete", nil
	}
	return ev, true
}

// chooses reports whether the selector matches an object's labels.
func chooses(s labels.Selector, raw json.RawMessage) bool {
	if s.Empty() {
		return true
	}
	var meta struct {
		metav1.ObjectMeta `json:"metadata"`
	}
	return json.Unmarshal(raw, &meta) == nil && s.Matches(labels.Set(meta.Labels))
}
