package store

import (
	"strings"
	"testing"
)

func TestVersionsThatKeepUsersApart(t *testing.T) {
	for version, good := range map[string]bool{
		"3.4.40": false, "3.5.32": false, "3.5.33": true, "3.6.13": false, "3.6.14": true, "3.6.20": true,
		"3.7.0": false, "3.7.1": true, "3.7.3": true, "3.8.0": true, "4.0.0": true, "2.3.8": false, "latest": false,
	} {
		err := checkVersion(version)
		if (err == nil) != good {
			t.Errorf("%s: %v", version, err)
		}
		if err != nil && version != "latest" && !strings.Contains(err.Error(), "CVE-2026-73499") {
			t.Errorf("%s: the reason is missing: %v", version, err)
		}
	}
}
