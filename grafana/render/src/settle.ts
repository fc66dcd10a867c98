// Owns the question when the page stands still: charts, legends and icons arrive in steps.
const QUIET_MS = 300;
const GIVE_UP_MS = 15_000;

/** Resolves once the page has not changed for a while. */
export function settle(root: Node): Promise<void> {
  return new Promise((resolve) => {
    const finish = () => {
      observer.disconnect();
      clearTimeout(quiet);
      clearTimeout(limit);
      resolve();
    };
    let quiet = setTimeout(finish, QUIET_MS);
    const limit = setTimeout(finish, GIVE_UP_MS);
    const observer = new MutationObserver(() => {
      clearTimeout(quiet);
      quiet = setTimeout(finish, QUIET_MS);
    });
    observer.observe(root, { subtree: true, childList: true, attributes: true, characterData: true });
  });
}

/** Charts measure and paint text once, so the fonts must be there before them. */
export async function loadFonts(): Promise<void> {
  await Promise.all(['400 14px Inter', '500 14px Inter'].map((font) => document.fonts.load(font)));
}
