package wire

// Keys of what the controllers could not do. The API server that leads writes them, and all
// of them show them.
const (
	ProblemsPrefix = "weft/problems/"
	// RefusedPrefix holds the refused claims of each node, by reason.
	RefusedPrefix = ProblemsPrefix + "refused/"
	// UnwrittenKey holds which endpoints and slices cannot be written, by cause.
	UnwrittenKey = ProblemsPrefix + "unwritten"
	// TroublePrefix holds what keeps the endpoint of a pod from being as it is claimed.
	TroublePrefix = ProblemsPrefix + "pods/"
	// NotExportedPrefix holds why a key is not exported, by that key.
	NotExportedPrefix = ProblemsPrefix + "export/"
	// SourceProblemsPrefix holds what is wrong with each source of objects.
	SourceProblemsPrefix = ProblemsPrefix + "sources/"
	// SightingsKey holds since when each concern in the status has been seen.
	SightingsKey = "weft/sightings"
)

// RefusedKey is that of a node's refused claims.
func RefusedKey(node string) string { return RefusedPrefix + node }

// TroubleKey is that of a pod's trouble.
func TroubleKey(ns, pod string) string { return TroublePrefix + ns + "/" + pod }

// ParseTroubleKey is the inverse of TroubleKey.
func ParseTroubleKey(key string) (ns, pod string, ok bool) {
	p, ok := parts(key, TroublePrefix, 2)
	if !ok {
		return "", "", false
	}
	return p[0], p[1], true
}

// SourceProblemsKey is that of the problems of the source with a name.
func SourceProblemsKey(source string) string { return SourceProblemsPrefix + source }

// NotExportedKey is that of the problem of a key of the state, or of the export.
func NotExportedKey(key string) string { return NotExportedPrefix + key }
