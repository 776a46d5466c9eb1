package identity

import "testing"

func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		name        string
		split       Split
		cluster     ClusterID
		first, last Number
	}{
		{"8+16, the first", Split255, 1, 65536, 131071},
		{"8+16, cluster 3", Split255, 3, 196608, 262143},
		{"8+16, the last", Split255, 255, 0xff0000, 0xffffff},
		{"9+15, the first", Split511, 1, 32768, 65535},
		{"9+15, the last", Split511, 511, 0xff8000, 0xffffff},
		{"cluster 0 begins above the reserved numbers", Split255, 0, 256, 65535},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first, last := tt.split.Range(tt.cluster)
			if first != tt.first || last != tt.last {
				t.Errorf("range %d to %d, want %d to %d", first, last, tt.first, tt.last)
			}
			for _, n := range []Number{first, last} {
				if got := tt.split.Cluster(n); got != tt.cluster {
					t.Errorf("%d is of cluster %d", uint32(n), got)
				}
			}
		})
	}
	if got := Split255.Cluster(199472); got != 3 {
		t.Errorf("199472 is of cluster %d, want 3", got)
	}
	if got := Split255.Cluster(LocalNumber(0x30001)); got != 0 {
		t.Errorf("a node-local number is of cluster %d", got)
	}
}

func TestSplitOfMesh(t *testing.T) {
	for max, want := range map[int]Split{0: Split255, 255: Split255, 511: Split511, 100: 0} {
		if got, err := SplitFor(max); got != want || (err == nil) != (want != 0) {
			t.Errorf("%d: %d, %v", max, got, err)
		}
	}
}

func TestCheckCluster(t *testing.T) {
	for _, tt := range []struct {
		split Split
		id    ClusterID
		ok    bool
	}{{Split255, 1, true}, {Split255, 255, true}, {Split255, 256, false}, {Split511, 511, true}, {Split511, 512, false}, {Split255, 0, false}} {
		if err := tt.split.CheckCluster(tt.id); (err == nil) != tt.ok {
			t.Errorf("%d of %d clusters: %v", tt.id, tt.split, err)
		}
	}
}

func TestNumberText(t *testing.T) {
	for n, text := range map[Number]string{World: "world", UnknownMember: "unknown-member", 199472: "199472", LocalNumber(5): "16777221"} {
		if n.String() != text {
			t.Errorf("%d is written %s, want %s", uint32(n), n, text)
		}
		if back, err := ParseNumber(text); err != nil || back != n {
			t.Errorf("%s read as %v, %v", text, back, err)
		}
	}
	if _, err := ParseNumber("moon"); err == nil {
		t.Error("accepted moon")
	}
	if !Health.Reserved() || Number(256).Reserved() || LocalNumber(1).Scope() != ScopeLocal {
		t.Error("scopes")
	}
	for n, labels := range AllReserved() {
		if !labels.Has(SourceReserved, n.String()) {
			t.Errorf("%v has labels %v", n, labels)
		}
	}
}
