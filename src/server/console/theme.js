// No module: it runs before the first paint, so that a chosen theme does not flash.
(() => {
  const PLACE = 'limbeck-theme';
  const THEMES = ['auto', 'light', 'dark'];
  const stored = localStorage.getItem(PLACE) ?? 'auto';
  let theme = THEMES.includes(stored) ? stored : 'auto';
  document.documentElement.dataset['theme'] = theme;

  addEventListener('DOMContentLoaded', () => {
    const button = document.getElementById('theme');
    if (button === null) return;
    const show = () => {
      document.documentElement.dataset['theme'] = theme;
      button.textContent = `Theme: ${theme}`;
    };
    button.addEventListener('click', () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length] ?? 'auto';
      localStorage.setItem(PLACE, theme);
      show();
    });
    show();
  });
})();
