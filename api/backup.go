package api

// Backup describes a file that `weft backup` wrote: the whole store of a cluster, its
// certificate authority included.
type Backup struct {
	Cluster    string `json:"cluster"`
	ID         uint32 `json:"id"`
	Generation string `json:"generation"`
	// File is where it is.
	File string `json:"file"`
	// Revision is the store's at the moment of the backup.
	Revision int64 `json:"revision"`
	Keys     int   `json:"keys"`
	Bytes    int64 `json:"bytes"`
}

// Restored says what `weft restore` did.
type Restored struct {
	Backup Backup `json:"backup"`
	// DataDir is the API server's data folder, which holds the restored store.
	DataDir string `json:"dataDir"`
	// Aside is where the store is that was there before; empty if there was none.
	Aside string `json:"aside,omitempty"`
	// Authority says that the certificate authority was restored too. AuthorityAside is
	// where the one is that was there before; empty if there was none.
	Authority      bool   `json:"authority"`
	AuthorityAside string `json:"authorityAside,omitempty"`
	// Others are the URLs of the cluster's other API servers, as far as this machine knows.
	Others []string `json:"others,omitempty"`
	// Next says what to do now.
	Next []string `json:"next"`
}
