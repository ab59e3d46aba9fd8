// Light or dark: as this browser was told here, else as its system is. Before the page is drawn.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => { try { return localStorage.getItem("console-theme"); } catch { return null; } };
  const choose = (theme) => { try { localStorage.setItem("console-theme", theme); } catch { /* for this page only */ } };
  const apply = (theme) => {
    document.documentElement.dataset.bsTheme = theme;
    document.getElementById("theme-toggle")?.setAttribute("aria-pressed", String(theme === "dark"));
  };
  const applyWhatIsWanted = () => apply(chosen() || (dark.matches ? "dark" : "light"));
  applyWhatIsWanted();
  dark.addEventListener("change", applyWhatIsWanted);
  document.addEventListener("DOMContentLoaded", applyWhatIsWanted);  // The button stands in the page by now.
  window.consoleTheme = {
    toggle() {
      const theme = document.documentElement.dataset.bsTheme === "dark" ? "light" : "dark";
      choose(theme);
      apply(theme);
    },
  };
})();
