//! All routes of a gateway: one for each method of a path.

use std::collections::HashSet;

use toml::Value;

use crate::model::gateway::keys::{Wrong, Wrongs};
use crate::model::gateway::route::{CheckTarget, Claims, Route};
use crate::model::gateway::rules::ReadFile;

/// Maximum number of routes.
pub const MAX_ROUTES: usize = 256;

/// First level of the paths of routes, as examples and other programs have it.
const USUAL: &str = "hooks";

/// What there is at a path.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    /// No route has the path.
    None,
    /// Routes have the path, but not the method.
    Method,
    /// The route.
    Route(&'a Route),
}

/// All routes of a gateway.
#[derive(Debug, Clone, Default)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// Reads the `[[route]]` tables. `file` returns the content of files with secrets, and `may` checks
    /// where they lead.
    ///
    /// # Errors
    /// Everything that is wrong, with the place of its table, from 0.
    pub fn read(
        tables: &[Value],
        file: ReadFile<'_>,
        may: CheckTarget<'_>,
    ) -> Result<Self, Vec<(usize, Wrong)>> {
        let (mut names, mut paths) = (HashSet::new(), HashSet::new());
        let (mut routes, mut all) = (Vec::new(), Vec::new());
        for (n, table) in tables.iter().enumerate() {
            let mut wrongs = Wrongs::default();
            let wrong = |key: &str, cause: String| {
                let place = vec![key.to_owned()];
                Wrong { place, cause }
            };
            if n >= MAX_ROUTES {
                let cause = format!("there are more than {MAX_ROUTES} routes");
                all.push((n, wrong("name", cause)));
                break;
            }
            routes.extend(Route::read(table, file, may, &mut wrongs));
            // A route with other mistakes claims them too.
            let claims = Claims::of(table);
            if let Some(name) = claims.name.filter(|name| !names.insert((*name).to_owned())) {
                wrongs.note(wrong("name", format!("two routes are called '{name}'")));
            }
            for (path, method) in claims.paths {
                let cause = format!("two routes have {method} {path}");
                if !paths.insert((path, method)) {
                    wrongs.note(wrong("path", cause));
                }
            }
            all.extend(wrongs.all().into_iter().map(|wrong| (n, wrong)));
        }
        match all.is_empty() {
            true => Ok(Self(routes)),
            false => Err(all),
        }
    }

    /// Returns all of them, in their order.
    #[must_use]
    pub fn all(&self) -> &[Route] {
        &self.0
    }

    /// Returns the route of a method and a path.
    #[must_use]
    pub fn find(&self, method: &str, path: &str) -> Found<'_> {
        let mut found = Found::None;
        for route in self.0.iter().filter(|route| route.path == path) {
            if route.methods.iter().any(|own| own == method) {
                return Found::Route(route);
            }
            found = Found::Method;
        }
        found
    }

    /// Returns the methods of a path, as the header field `Allow` lists them.
    #[must_use]
    pub fn allow(&self, path: &str) -> String {
        let routes = self.0.iter().filter(|route| route.path == path);
        let methods: Vec<&str> = routes
            .flat_map(|route| route.methods.iter().map(String::as_str))
            .collect();
        methods.join(", ")
    }

    /// Returns whether a path without a route looks like that of one: its first level is that of a
    /// route, or the usual one.
    #[must_use]
    pub fn is_near(&self, path: &str) -> bool {
        let first = |path: &str| path.split('/').nth(1).map(str::to_owned);
        let level = first(path);
        let mut own = self.0.iter().map(|route| first(&route.path));
        level.as_deref() == Some(USUAL) || own.any(|own| own == level)
    }
}
