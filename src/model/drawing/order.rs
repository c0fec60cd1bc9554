//! Columns of a graph: who comes before whom, without a circle.

/// An edge of the drawing, by the places of its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrow {
    /// Node in the earlier column.
    pub left: usize,
    /// Node in the later column.
    pub right: usize,
    /// Whether it points from right to left: it would close a circle.
    pub is_back: bool,
}

/// Returns the arrows of `edges`, from and to, of `count` nodes, in their order. Edges of a node to
/// itself get none, and are not in the result.
pub(super) fn arrows(count: usize, edges: &[(usize, usize)]) -> Vec<Option<Arrow>> {
    let mut next: Vec<Vec<(usize, usize)>> = vec![Vec::new(); count];
    for (n, (from, to)) in edges.iter().enumerate() {
        if from != to
            && *to < count
            && let Some(list) = next.get_mut(*from)
        {
            list.push((n, *to));
        }
    }
    let mut arrows = vec![None; edges.len()];
    // 0 for new, 1 for a node on the way, 2 for a node that is done.
    let mut marks = vec![0_u8; count];
    for start in 0..count {
        if marks.get(start) != Some(&0) {
            continue;
        }
        if let Some(mark) = marks.get_mut(start) {
            *mark = 1;
        }
        // Without recursion: a chain may be long.
        let mut way = vec![(start, 0_usize)];
        while let Some((node, done)) = way.last_mut() {
            let node = *node;
            let edge = next.get(node).and_then(|list| list.get(*done)).copied();
            *done += 1;
            let Some((n, to)) = edge else {
                if let Some(mark) = marks.get_mut(node) {
                    *mark = 2;
                }
                way.pop();
                continue;
            };
            let mark = marks.get(to).copied().unwrap_or(2);
            let arrow = match mark {
                1 => Arrow {
                    left: to,
                    right: node,
                    is_back: true,
                },
                _ => Arrow {
                    left: node,
                    right: to,
                    is_back: false,
                },
            };
            if let Some(own) = arrows.get_mut(n) {
                *own = Some(arrow);
            }
            if mark == 0 {
                if let Some(mark) = marks.get_mut(to) {
                    *mark = 1;
                }
                way.push((to, 0));
            }
        }
    }
    arrows
}

/// Returns the column of each node: one more than the last of those before it.
pub(super) fn columns(count: usize, arrows: &[Arrow]) -> Vec<usize> {
    let mut before = vec![0_usize; count];
    let mut next: Vec<Vec<usize>> = vec![Vec::new(); count];
    for arrow in arrows {
        if let (Some(number), Some(list)) = (before.get_mut(arrow.right), next.get_mut(arrow.left))
        {
            *number += 1;
            list.push(arrow.right);
        }
    }
    let mut columns = vec![0; count];
    let mut free: Vec<usize> = (0..count).filter(|n| before.get(*n) == Some(&0)).collect();
    while let Some(node) = free.pop() {
        let own = columns.get(node).copied().unwrap_or(0);
        for to in next.get(node).into_iter().flatten() {
            if let Some(column) = columns.get_mut(*to) {
                *column = (*column).max(own + 1);
            }
            if let Some(number) = before.get_mut(*to) {
                *number -= 1;
                if *number == 0 {
                    free.push(*to);
                }
            }
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_circle_is_opened() {
        let arrows = arrows(3, &[(0, 1), (1, 2), (2, 0), (1, 1)]);
        assert_eq!(arrows[3], None);
        let backs: Vec<bool> = arrows.iter().flatten().map(|a| a.is_back).collect();
        assert_eq!(backs, [false, false, true]);
        let arrows: Vec<Arrow> = arrows.into_iter().flatten().collect();
        assert_eq!(columns(3, &arrows), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn each_arrow_leads_to_a_later_column(edges in proptest::collection::vec((0_usize..12, 0_usize..12), 0..60)) {
            let arrows: Vec<Arrow> = arrows(12, &edges).into_iter().flatten().collect();
            let columns = columns(12, &arrows);
            for arrow in &arrows {
                prop_assert!(columns[arrow.left] < columns[arrow.right], "{arrow:?}");
            }
            let others = edges.iter().filter(|(from, to)| from != to).count();
            prop_assert_eq!(arrows.len(), others);
        }
    }
}
