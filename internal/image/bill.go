package main

import (
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"runtime/debug"
	"strings"
)

// The bill of materials is in the format SPDX 2.3 (https://spdx.github.io/spdx-spec/v2.3), as
// far as a program of Go needs it: the module itself, Go's standard library, and all modules
// that the program holds.
type spdxDocument struct {
	Version       string             `json:"spdxVersion"`
	License       string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID       string          `json:"SPDXID"`
	Name     string          `json:"name"`
	Version  string          `json:"versionInfo"`
	Location string          `json:"downloadLocation"`
	Analyzed bool            `json:"filesAnalyzed"`
	Refs     []spdxReference `json:"externalRefs"`
}

type spdxReference struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxRelationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// billOfMaterials reads from a program what it is made of.
func billOfMaterials(p program, o options) ([]byte, error) {
	info, err := buildinfo.ReadFile(p.path)
	if err != nil {
		return nil, fmt.Errorf("what the program for %s is made of: %w", p, err)
	}
	d := spdxDocument{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: "weft-" + o.version + "-" + p.arch,
		Namespace: "https://github.com/weft-mesh/weft/spdx/" + tag(o.version) + "/" + p.os + "-" + p.arch,
		Creation:  spdxCreation{o.created.Format("2006-01-02T15:04:05Z"), []string{"Tool: weft-internal-image"}},
	}
	main := packageOf(info.Main.Path, o.version)
	d.Packages = append(d.Packages, main)
	d.Relationships = append(d.Relationships, spdxRelationship{d.ID, "DESCRIBES", main.ID})
	library := packageOf("stdlib", strings.TrimPrefix(info.GoVersion, "go"))
	for _, p := range append([]spdxPackage{library}, modules(info.Deps)...) {
		d.Packages = append(d.Packages, p)
		d.Relationships = append(d.Relationships, spdxRelationship{main.ID, "DEPENDS_ON", p.ID})
	}
	return json.MarshalIndent(d, "", " ")
}

// modules are a program's modules; one that is replaced is what replaces it.
func modules(deps []*debug.Module) (out []spdxPackage) {
	for _, m := range deps {
		if m.Replace != nil {
			m = m.Replace
		}
		out = append(out, packageOf(m.Path, m.Version))
	}
	return out
}

func packageOf(path, version string) spdxPackage {
	// An identifier may hold letters, digits, dots and dashes alone.
	id := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.':
			return r
		}
		return '-'
	}, path)
	return spdxPackage{
		ID: "SPDXRef-" + id, Name: path, Version: version, Location: "NOASSERTION",
		Refs: []spdxReference{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + version}},
	}
}
