// The theme is set before the first paint, hence a classic script in the head. Without a choice the system's is followed.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => localStorage.getItem("theme");
  const dark = () => (chosen() ?? (system.matches ? "dark" : "light")) === "dark";

  function apply() {
    if (chosen()) root.dataset.theme = chosen();
    else delete root.dataset.theme;
    document.getElementById("theme")?.setAttribute("aria-pressed", String(dark()));
  }

  function toggle() {
    const wanted = dark() ? "light" : "dark";
    if ((wanted === "dark") === system.matches) localStorage.removeItem("theme");
    else localStorage.setItem("theme", wanted);
    apply();
  }

  apply();
  system.addEventListener("change", apply);
  addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", toggle);
  });
})();
