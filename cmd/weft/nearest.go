package main

import "strings"

// didYouMean ends a sentence about an unknown word: with the nearest known word, or all of
// them if none is near.
func didYouMean(word string, known []string) string {
	if near := nearest(word, known); near != "" {
		return "did you mean " + near + "?"
	}
	return "choose from " + strings.Join(known, ", ")
}

// nearest returns the known word that takes the fewest letters to change, add, drop or
// swap, or "" if that is more than a third of the word's letters.
func nearest(word string, known []string) (near string) {
	least := max(1, len(word)/3) + 1
	for _, k := range known {
		if d := distance(word, k); d < least {
			near, least = k, d
		}
	}
	return near
}

// distance is the Damerau-Levenshtein distance, with swaps of adjacent letters.
func distance(a, b string) int {
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := range len(a) {
		before, last, row := rows[0], rows[1], rows[2]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		rows = [3][]int{last, row, before}
	}
	return rows[1][len(b)]
}
