package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	mcs "sigs.k8s.io/mcs-api/pkg/apis/v1beta1"

	"github.com/weft-mesh/weft/wire"
)

// readServiceExport reads the wish to offer a service to all clusters. The service may be
// applied later.
func readServiceExport(r *reading) {
	e, ok := decode[*mcs.ServiceExport](r)
	if !ok {
		return
	}
	if mistakes := validation.IsDNS1035Label(r.name); len(mistakes) > 0 {
		r.refuse("metadata.name %q: %s", r.name, mistakes[0])
	}
	e.Status = mcs.ServiceExportStatus{} // package mcs finds it
	checkLabels(r, "spec.exportedLabels", e.Spec.ExportedLabels)
	for key := range e.Spec.ExportedAnnotations {
		if mistakes := validation.IsQualifiedName(strings.ToLower(key)); len(mistakes) > 0 {
			r.refuse("spec.exportedAnnotations: key %q: %s", key, mistakes[0])
		}
	}
}

// readServiceImport reads what package mcs has derived.
func readServiceImport(r *reading) { _, _ = decode[*mcs.ServiceImport](r) }

// showExports fills in the status of service exports.
func (r *Registry) showExports(ctx context.Context, items []json.RawMessage) error {
	if len(items) == 0 {
		return nil
	}
	exports, keys := make([]mcs.ServiceExport, len(items)), make([]string, len(items))
	for i, item := range items {
		if err := json.Unmarshal(item, &exports[i]); err != nil {
			return fmt.Errorf("read stored service export: %w", err)
		}
		keys[i] = wire.ExportStatusKey(exports[i].Namespace, exports[i].Name)
	}
	kvs, err := r.store.GetMany(ctx, keys...)
	if err != nil {
		return storeError(err)
	}
	for i, kv := range kvs {
		_ = json.Unmarshal(kv.Value, &exports[i].Status) // of nothing, nothing
		if items[i], err = json.Marshal(&exports[i]); err != nil {
			return err
		}
	}
	return nil
}
